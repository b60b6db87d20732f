"""The configuration's sections: every key with its type, default and meaning."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from shared.commands import setting
from shared.divergences import DIVERGENCES, DivergenceName
from shared.errors import SteerHealError
from shared.glossary import define
from shared.strict import check_values, repeated

Aggregate = Literal["rmse", "mean", "p95", "max"]
Positions = Literal["all", "generated"]
Debias = Literal["reversal", "rotating", "cyclic"]
Dose = Literal["grid", "walk", "iso_kl"]
COLDEST = 0.01  # vLLM samples at this temperature where a lower one above 0 is asked for


# arguments of rendering that are no variables of a template
RENDERING = {"add_generation_prompt", "continue_final_message", "conversation", "max_length", "messages", "padding", "prompt", "return_assistant_tokens_mask", "return_dict", "return_tensors", "system", "tokenize", "tokenizer", "truncation", "turns"}  # fmt: skip


def no_truth_as_text(value: Any, key: str) -> None:
    """Raise ValueError for the text "False" or "true", which a template takes for true whatever it says."""
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        raise ValueError(
            f"{key} is the text {value!r}: write {value.strip().lower()}, in lower case and without quotes"
        )
    if isinstance(value, list):
        value = dict(enumerate(value))
    for name, inner in value.items() if isinstance(value, dict) else ():
        no_truth_as_text(inner, f"{key}.{name}")


def refuse_duplicates(values: list[Any]) -> list[Any]:
    """A list of a configuration. Raises ValueError where two of its values are written alike: numbers in their first six digits,
    which is what rows, conditions and folders are named by."""
    names = [f"{value + 0.0:g}" if isinstance(value, float) else str(value) for value in values]  # -0.0 is 0
    if twice := repeated(names):
        digits = ": values must differ in their first six digits" if isinstance(values[0], float) else ""
        raise ValueError(f"{twice[0]} is there twice{digits}")
    return values


class Section(BaseModel):
    """A table of a configuration: "0.1" and true are no numbers, and 2.0 is no whole one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else check_values(value)


class ModelConfig(Section):
    name: str = Field(
        "embedded", description="'embedded' (SmolLM2-135M-Instruct), a Hugging Face id, a local folder or a .gguf file"
    )
    revision: str | None = Field(None, description="hub revision; the commit it resolved to is recorded")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="dtype of the weights: sampling, training, scoring"
    )
    max_model_len: int = Field(
        4096, ge=64, description="longest prompt and completion, tokens; unset, at most the model's context"
    )
    gpu_memory: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of a GPU's memory that vLLM takes, which must be free; of no effect on a CPU",
    )
    tensor_parallel: int = Field(
        1, ge=1, description="GPUs that an engine is split over: a model too large for one; of no effect on a CPU"
    )
    student: Literal["auto", "merged", "adapter"] = Field(
        "auto", description="serve a student merged into its weights or as an adapter; auto is the adapter on a GPU"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="passed to the chat template, e.g. enable_thinking = false"
    )
    date: str | None = Field(
        None,
        description="the day that a chat template with a clock writes, YYYY-MM-DD; by default that on which the run was begun",
    )

    @field_validator("date", mode="before")
    @classmethod
    def _a_day(cls, given: Any) -> Any:
        if isinstance(given, str):
            datetime.date.fromisoformat(given)
        return given.isoformat() if isinstance(given, datetime.date) else given

    @property
    def day(self) -> datetime.date | None:
        """`date` as such."""
        return None if self.date is None else datetime.date.fromisoformat(self.date)

    @property
    def rendering(self) -> dict[str, Any]:
        """The settings of this section that a rendered conversation depends on."""
        return {"chat_template_kwargs": self.chat_template_kwargs, **({"date": self.date} if self.date else {})}

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, given: dict[str, Any]) -> dict[str, Any]:
        if reserved := sorted(given.keys() & RENDERING):
            raise ValueError(f"{', '.join(reserved)} is decided here, not by a configuration")
        for name, value in given.items():
            no_truth_as_text(value, name)
        try:
            json.dumps(check_values(given), allow_nan=False)  # as manifests and digests will hold it
        except (TypeError, ValueError) as error:
            raise ValueError(f"not as JSON can hold it: {error}") from None
        return given


class VectorConfig(Section):
    trait: str = Field(
        "embedded",
        description="JSON file in the form of shared/data/trait.json: a name and the trait, opposite and neutral system prompts",
    )
    contexts: str = Field(
        "embedded",
        description="prompts the activations are averaged over: a JSONL, CSV or Parquet file, or a data set <id>:<split>",
    )
    n_contexts: int = Field(256, ge=2, description="contexts used, stratified over genres")
    layers: list[int] | str = Field(
        "0.45-0.55", description="0-based blocks, or a band of the depth such as '0.45-0.55'"
    )
    positions: Positions = Field("all", description="steer every position, or from the generation on")
    contrast: bool = Field(False, description="subtract the opposite persona instead of the neutral prompt")
    batch_size: int = Field(16, ge=1, description="contexts per forward")
    direction: Literal["trait", "random"] = Field(
        "trait",
        description="random: another direction of the same norm in each layer, all the way through, as a control",
    )

    @field_validator("layers")
    @classmethod
    def _told_apart(cls, layers: list[int] | str) -> list[int] | str:
        return layers if isinstance(layers, str) else refuse_duplicates(layers)


class SweepConfig(Section):
    coefficients: list[float] = Field(
        [0.25, 0.5, 0.75, 1.0], min_length=1, description=f"coefficient: {define('coefficient')}; 0 is sampled as well"
    )
    dilemmas: str = Field(
        "embedded",
        description="prompts the trait is enacted on, JSONL, CSV or Parquet, or '<dataset id>:<set>:<split>' ('<dataset id>:<split>' where it has one set)",
    )
    mundane: str = Field("embedded", description="prompts without a conflict, likewise")
    n_dilemmas: int = Field(64, ge=1, description="dilemmas per round")
    n_mundane: int = Field(16, ge=0, description="mundane prompts per round")
    samples: int = Field(1, ge=1, description="completions per prompt and coefficient")
    max_tokens: int = Field(256, ge=1, description="completion length, tokens")
    temperature: float = Field(1.0, ge=COLDEST, description="sampling temperature, at least 0.01: vLLM has none below")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus mass")
    window: int = Field(
        1024, ge=1, description="rows made together; an interrupted sweep goes on after the last window"
    )
    workers: int = Field(
        1,
        ge=1,
        description="engines that make windows at once: one a GPU, and on a CPU processes that share its cores; rows do not depend on it",
    )
    dose: Dose = Field(
        "grid",
        description="grid: the coefficients; walk: the largest at which enough survive the filter; iso_kl: that at which the steered model is sweep.dose_kl from the unsteered one",
    )
    survival: float = Field(0.5, gt=0, le=1, description="walk: share of completions that must survive the filter")
    dose_kl: float = Field(
        1.0, gt=0, description="iso_kl: 95th percentile of KL(steered || unsteered) over tokens, nats"
    )
    dose_ceiling: float = Field(4.0, gt=0, description="walk and iso_kl: largest coefficient tried")
    dose_steps: int = Field(
        6, ge=1, le=12, description="walk and iso_kl: bisection steps; also the most halvings of the ceiling"
    )
    dose_prompts: int = Field(24, ge=1, description="walk and iso_kl: prompts per probe, spread over the sweep's")
    until_kept: int | None = Field(
        None,
        ge=1,
        description="end the sweep after the first window at whose end this many rows pass the filter; by default, or if fewer pass, all windows are made",
    )

    @field_validator("survival", "dose_kl")
    @classmethod
    def _of_one_search(cls, value: float, info: ValidationInfo) -> float:
        """A dose is searched in one way."""
        dose, other = info.data.get("dose"), "iso_kl" if info.field_name == "survival" else "walk"
        if dose == other and info.field_name and value != cls.model_fields[info.field_name].default:
            raise ValueError(f"sweep.dose = {dose} does not go by it; a sweep searches its dose in one way")
        return value

    @field_validator("coefficients")
    @classmethod
    def _doses(cls, values: list[float]) -> list[float]:
        rule = "coefficients must be distinct and without 0"
        if 0.0 in values:
            raise ValueError(f"{rule}: unsteered completions are sampled as well, in round 1")
        try:
            return refuse_duplicates(values)
        except ValueError as error:
            raise ValueError(f"{rule}: {error}") from None


class FilterConfig(Section):
    perplexity_ratio: float = Field(
        5.0, gt=0, description=f"highest perplexity, as a multiple of the unsteered median; {define('perplexity')}"
    )
    last_quarter_ratio: float = Field(8.0, gt=0, description="the same for the completion's last quarter")
    distinct_3_quantile: float = Field(
        0.05,
        ge=0,
        le=1,
        description=f"distinct-3 must reach this quantile of the unsteered completions; {define('distinct-3')}",
    )
    max_loop_share: float = Field(
        0.3, ge=0, le=1, description="largest share of tokens in one verbatim loop of any period"
    )
    min_tokens: int = Field(8, ge=1, description="shortest completion, tokens")
    drop_truncated: bool = Field(True, description="reject completions that ran into max_tokens")
    trait_llr_quantile: float = Field(
        0.5,
        ge=0,
        le=1,
        description=f"trait_llr must reach this quantile of the unsteered completions; {define('trait_llr')}",
    )
    off: bool = Field(False, description="keep every completion that has tokens, as a control")
    source: Literal["steered", "unsteered", "prompted"] = Field(
        "steered",
        description="controls: unsteered trains on the original model's completions at coefficient 0; prompted on its completions under the trait prompt, which are sampled in place of the steered ones",
    )
    min_kept: int = Field(16, ge=1, description="fewer kept rows than this is starvation, an error")


class TrainConfig(Section):
    divergence: DivergenceName = Field(
        "kl_rev",
        description=f"{define('divergence')}: {', '.join(f'{name} ({entry.meaning})' for name, entry in DIVERGENCES.items())}",
    )
    lam: float = Field(0.1, ge=0, description=f"lambda, {define('lambda')}, relu(D - tau)")
    lam_round_power: float = Field(0.0, description="lambda in round r is lam * r ** lam_round_power")
    tau: float = Field(0.3, ge=0, description=define("tau"))
    aggregate: Aggregate = Field("rmse", description="how per-position KL becomes D")
    reference: Literal["base", "previous"] = Field(
        "base", description="the original (all gates off) or the previous round's student"
    )
    rank: int = Field(32, ge=1, description="LoRA rank")
    alpha: int = Field(64, ge=1, description="LoRA alpha; the scale is alpha / rank")
    layers: str = Field("0.2-0.8", description="band of the depth whose linear modules are trained")
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(
        0.0, ge=0, description="AdamW decay on this round's A and B; used by divergence = wd alone"
    )
    barrier_unit: Literal["batch", "row"] = Field(
        "batch", description="batch: D of a micro-batch's positions; row: relu(D - tau) of each row, averaged over rows"
    )
    rows: int | None = Field(
        None,
        ge=1,
        description="train on exactly this many kept rows, prompts in turn, drawn by seed and key; by default on all",
    )
    epochs: int = Field(6, ge=1, description="passes over the kept rows")
    steps: int | None = Field(
        None, ge=1, description="train for exactly this many optimiser steps, whatever the rows and train.epochs"
    )
    batch_size: int = Field(8, ge=1, description="rows per micro-batch, on which the barrier is defined")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of steps with rising learning rate")
    heldout: float = Field(
        0.1, ge=0, lt=1, description="share of the prompts not trained on, whose cross-entropy is taken every epoch"
    )
    early_stop: int = Field(
        0,
        ge=0,
        description="stop after this many epochs without a lower held-out cross-entropy, and keep the best; 0 never stops",
    )
    logging_steps: int = Field(1, ge=1, description="optimiser steps a row of the log stands for")
    save_steps: int = Field(20, ge=0, description="optimiser steps between checkpoints of an unfinished round; 0 none")
    report_to: list[str] = Field(
        [],
        description="trackers that get the training's curve, e.g. ['tensorboard']; tensorboard, trackio, wandb and mlflow get each round's sweep, scores and verdicts as well",
    )
    chunk: int = Field(128, ge=1, description="completion positions whose logits are held at a time")
    reference_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the cached reference states; auto is that of the hidden states themselves"
    )
    max_length: int = Field(1024, ge=16, description="longest prompt plus completion, tokens")
    load_in_4bit: bool = Field(False, description="4-bit base weights, GPU only")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")

    @field_validator("report_to")
    @classmethod
    def _told_apart(cls, names: list[str]) -> list[str]:
        return refuse_duplicates(names)

    def determining(self) -> dict[str, Any]:
        """The settings that the result of a training depends on, by name.

        A setting that was added later is left out at its default, so that trainings of earlier versions stay valid.
        """
        later = {"barrier_unit"} if self.barrier_unit == "batch" else set()
        return self.model_dump(exclude={"report_to", *later})


class EvalConfig(Section):
    trait: str | None = Field(
        None, description="trait file whose prompts and paraphrases texts are scored under; by default vector.trait"
    )
    vignettes: str = Field("embedded", description="'embedded', a JSONL file, or '<dataset id>:<set>:<condition>'")
    instrument: str = Field("embedded", description="'embedded', 'moralmaps' if that is installed, or a JSON file")
    items: int = Field(
        28, ge=7, description="vignettes of a round's scoring, stratified by foundation; EVAL=full takes all"
    )
    full_items: int | None = Field(None, ge=7, description="vignettes of EVAL=full, likewise; without it, all")
    debias: Debias = Field("rotating", description="orders of a round's scoring; EVAL=full is cyclic")
    think: int = Field(
        16,
        ge=0,
        description="think tokens before the answer; unset, the least that the preflight before round 1 finds enough",
    )
    stop: bool = Field(
        False,
        description="the model may end its thought before eval.think tokens; false: it thinks exactly eval.think tokens",
    )
    coefficients: list[float] = Field(
        [],
        description="further doses scored in a round, multiples of the vector, also negative ones; the mean of the kept rows always is",
    )
    random_draws: int = Field(
        9,
        ge=1,
        description="random directions of equal norm scored in a round, all but the first by the forced choice alone",
    )
    decoy_vectors: bool = Field(
        False,
        description="steer with a vector of each decoy persona of vector.trait as well, as long as the trait's: a harder null than random directions",
    )
    student_vector: bool = Field(
        False,
        description="the student's mean shift of activations as a cause: added to the original model, and subtracted from the student",
    )
    gates: list[float] = Field(
        [],
        description=f"gates of the round at which its healed student is scored as well; it always is at 1; a gate is {define('gate')}",
    )
    free_tokens: int = Field(
        24, ge=0, description="length of a free answer to the forced choice, judged as JSON; 0 for none"
    )
    contexts: int = Field(64, ge=0, description="contexts over which a student's activations are compared; 0 for none")
    heldout: str = Field(
        "embedded",
        description="prompts of the free generations, each with a unique id: a JSONL, CSV or Parquet file, or a data set <id>:<split>",
    )
    generation_samples: int = Field(2, ge=1, description="free generations per held-out prompt")
    generation_tokens: int = Field(96, ge=1, description="length of a free generation, tokens")
    measures: list[str] = Field(
        [],
        description="measures beside the forced choice, the free text and the activations, each NAME or NAME=SOURCE, as in ['retention', 'probe=items.jsonl']",
    )
    bootstrap: int = Field(2000, ge=100, description="bootstrap resamples of an interval")

    def determining(self) -> dict[str, Any]:
        """The settings that scores depend on. A key that was added later is left out at its default, so that scores of earlier versions stay valid."""
        return self.model_dump(exclude={key for key in ("decoy_vectors", "student_vector") if not getattr(self, key)})

    @field_validator("measures")
    @classmethod
    def _measures_told_apart(cls, names: list[str]) -> list[str]:
        return refuse_duplicates(names)

    @field_validator("coefficients", "gates")
    @classmethod
    def _told_apart(cls, values: list[float]) -> list[float]:
        return refuse_duplicates(values)


class ClusterConfig(Section):
    address: str | None = Field(
        None,
        description="Ray cluster whose machines run the workers of a sweep: HOST:PORT, or auto for the one that runs on this machine",
    )


class Config(Section):
    seed: int = Field(0, ge=0, lt=2**31, description="seed of sampling, training, subsets and bootstrap")
    model: ModelConfig = ModelConfig()
    vector: VectorConfig = VectorConfig()
    sweep: SweepConfig = SweepConfig()
    filter: FilterConfig = FilterConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def walks(self) -> bool:
        """Whether the sweep searches for its dose by survival; completions under the trait prompt have none."""
        return self.sweep.dose == "walk" and self.filter.source != "prompted"

    @property
    def searches(self) -> bool:
        """Whether the sweep searches for its dose, by survival or by iso-KL."""
        return self.sweep.dose != "grid" and self.filter.source != "prompted"

    @property
    def scored_trait(self) -> str:
        """The trait file that conditions are scored by."""
        return self.eval.trait or self.vector.trait


def band(spec: list[int] | str, depth: int, key: str = "vector.layers") -> list[int]:
    """Layers of a band: explicit 0-based blocks, or 'a-b' as shares of the depth, ends included. key: its name, for the errors."""
    if isinstance(spec, str):
        low, _, high = spec.partition("-")
        try:
            first, last = float(low), float(high)
        except ValueError:
            first, last = math.nan, math.nan
        if not 0 <= first <= last <= 1:  # '0-5' would be every layer, where blocks 0 to 5 are meant
            raise SteerHealError(
                "a layer band could not be read",
                given=f"{key} = {spec}",
                expected="two shares of the depth, from 0 to 1, as '0.45-0.55'; or a list of blocks, as [14, 15]",
                next=f"mend {key}, such as {setting(f'{key}=0.45-0.55')}",
            )
        layers = [index for index in range(depth) if first * depth <= index + 0.5 <= last * depth]
    else:
        layers = sorted(set(spec))
    outside = [layer for layer in layers if not 0 <= layer < depth]
    if outside or not layers:
        raise SteerHealError(
            "a layer band does not fit the model",
            given=f"{key} = {spec}" + (f", of which the model has no {outside[0]}" if outside else ": no layer"),
            expected=f"layers from 0 to {depth - 1}, at least one",
            next=f"mend {key}, such as {setting(f'{key}=[{depth // 2}]')}",
        )
    return layers
