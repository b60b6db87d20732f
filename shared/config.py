"""Configuration: defaults, then a TOML file, then SET; unknown keys are refused and every value knows its source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from tomlkit.items import Item, Table

from shared.commandline import config_options
from shared.commands import command_of, form, nearest, round_command, setting
from shared.errors import SteerHealError, in_one_line
from shared.strict import NUMBER, Convertible, decode, parse_toml, plain

Divergence = Literal["nll", "kl_fwd", "kl_rev", "wd"]
Aggregate = Literal["rmse", "mean", "p95", "max"]
Positions = Literal["all", "generated"]
Debias = Literal["reversal", "cyclic"]
Dose = Literal["grid", "walk"]


# arguments of rendering that are no variables of a template
RENDERING = {"add_generation_prompt", "continue_final_message", "conversation", "max_length", "messages", "padding", "prompt", "return_assistant_tokens_mask", "return_dict", "return_tensors", "system", "tokenize", "tokenizer", "truncation", "turns"}  # fmt: skip

# where and how a run's stages run, and nothing of what they make: these may change in a run that has begun
PLACE = {"model.gpu_memory", "train.report_to"}

# tables and keys of a file that are no part of the configuration: arms over it (evals/study/plan.py), when its run was begun
BESIDE = ("study", "begun")


class Section(BaseModel):
    """A table of a configuration: "0.1" and true are no numbers, and 2.0 is no whole one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else plain(value)


class ModelConfig(Section):
    name: str = Field("embedded", description="'embedded' (SmolLM2-135M-Instruct), a Hugging Face id or a local folder")
    revision: str | None = Field(None, description="hub revision; the commit it resolved to is recorded")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="dtype of the weights: sampling, training, scoring"
    )
    max_model_len: int = Field(4096, ge=64, description="longest prompt and completion, tokens")
    gpu_memory: float = Field(
        0.9,
        gt=0,
        le=1,
        description="share of a GPU's memory that vLLM takes, which must be free; of no effect on a CPU",
    )
    student: Literal["auto", "merged", "adapter"] = Field(
        "auto", description="serve a student merged into its weights or as an adapter; auto is the adapter on a GPU"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="passed to the chat template, e.g. enable_thinking = false"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(given.keys() & RENDERING):
            raise ValueError(f"{', '.join(taken)} is decided here, not by a configuration")
        try:
            json.dumps(plain(given), allow_nan=False)  # as manifests and digests will hold it
        except (TypeError, ValueError) as error:
            raise ValueError(f"not as JSON can hold it: {error}") from None
        return given


class VectorConfig(Section):
    trait: str = Field(
        "embedded",
        description="JSON file in the form of shared/data/trait.json: a name and the trait, opposite and neutral system prompts",
    )
    contexts: str = Field("embedded", description="prompts JSONL the activations are averaged over")
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


class SweepConfig(Section):
    coefficients: list[float] = Field(
        [0.25, 0.5, 0.75, 1.0], min_length=1, description="multiples of the raw vector; 0 is sampled besides"
    )
    dilemmas: str = Field(
        "embedded",
        description="prompts the trait is enacted on, JSONL or '<dataset id>:<set>:<split>' ('<dataset id>:<split>' where it has one set)",
    )
    mundane: str = Field("embedded", description="prompts without a conflict, likewise")
    n_dilemmas: int = Field(64, ge=1, description="dilemmas per round")
    n_mundane: int = Field(16, ge=0, description="mundane prompts per round")
    samples: int = Field(1, ge=1, description="completions per prompt and coefficient")
    max_tokens: int = Field(256, ge=1, description="completion length, tokens")
    temperature: float = Field(1.0, gt=0, description="sampling temperature")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus mass")
    window: int = Field(
        1024, ge=1, description="rows made together; an interrupted sweep goes on after the last window"
    )
    dose: Dose = Field(
        "grid", description="grid: the coefficients; walk: the largest at which enough survive the filter"
    )
    survival: float = Field(0.5, gt=0, le=1, description="walk: share of completions that must survive the filter")
    dose_ceiling: float = Field(4.0, gt=0, description="walk: largest coefficient tried")
    dose_steps: int = Field(6, ge=1, le=12, description="walk: bisection steps; also the most halvings of the ceiling")
    dose_prompts: int = Field(24, ge=1, description="walk: prompts per probe, spread over the sweep's")

    @field_validator("coefficients")
    @classmethod
    def _doses(cls, values: list[float]) -> list[float]:
        if 0.0 in values or len(set(values)) != len(values):
            raise ValueError(
                "coefficients must be distinct and without 0: unsteered completions are sampled besides, in round 1"
            )
        return values


class FilterConfig(Section):
    perplexity_ratio: float = Field(5.0, gt=0, description="highest perplexity, as a multiple of the unsteered median")
    last_quarter_ratio: float = Field(8.0, gt=0, description="the same for the completion's last quarter")
    distinct_3_quantile: float = Field(
        0.05, ge=0, le=1, description="distinct-3 must reach this quantile of the unsteered completions"
    )
    max_loop_share: float = Field(
        0.3, ge=0, le=1, description="largest share of tokens in one verbatim loop of any period"
    )
    min_tokens: int = Field(8, ge=1, description="shortest completion, tokens")
    drop_truncated: bool = Field(True, description="reject completions that ran into max_tokens")
    trait_llr_quantile: float = Field(
        0.5, ge=0, le=1, description="trait_llr must reach this quantile of the unsteered completions"
    )
    off: bool = Field(False, description="keep every completion that has tokens, as a control")
    source: Literal["steered", "unsteered"] = Field(
        "steered", description="unsteered: train on the original model's completions at coefficient 0, as a control"
    )
    min_kept: int = Field(16, ge=1, description="fewer kept rows than this is starvation, an error")


class TrainConfig(Section):
    divergence: Divergence = Field(
        "kl_rev",
        description="D of the barrier: nll (0), kl_fwd KL(ref||theta), kl_rev KL(theta||ref), wd (0, AdamW decay)",
    )
    lam: float = Field(0.1, ge=0, description="lambda, weight of relu(D - tau)")
    lam_round_power: float = Field(0.0, description="lambda in round r is lam * r ** lam_round_power")
    tau: float = Field(0.3, ge=0, description="divergence left free, nats")
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
    epochs: int = Field(6, ge=1, description="passes over the kept rows")
    batch_size: int = Field(8, ge=1, description="rows per micro-batch; the barrier is defined on it")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches per optimiser step")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of steps with rising learning rate")
    heldout: float = Field(
        0.1, ge=0, lt=1, description="share of the prompts not trained on, whose cross-entropy is taken every epoch"
    )
    early_stop: int = Field(
        0, ge=0, description="stop after so many epochs without a lower held-out cross-entropy, keep the best; 0 never"
    )
    logging_steps: int = Field(1, ge=1, description="optimiser steps a row of the log stands for")
    save_steps: int = Field(20, ge=0, description="optimiser steps between checkpoints of an unfinished round; 0 none")
    report_to: list[str] = Field(
        [], description="where transformers reports the log besides its file, e.g. ['tensorboard']"
    )
    chunk: int = Field(128, ge=1, description="completion positions whose logits are held at a time")
    reference_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="dtype of the cached reference states; auto is that of the hidden states themselves"
    )
    max_length: int = Field(1024, ge=16, description="longest prompt plus completion, tokens")
    load_in_4bit: bool = Field(False, description="4-bit base weights, GPU only")
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")


class EvalConfig(Section):
    vignettes: str = Field("embedded", description="'embedded', a JSONL file, or '<dataset id>:<set>:<condition>'")
    instrument: str = Field("embedded", description="'embedded', 'moralmaps' if that is installed, or a JSON file")
    items: int = Field(
        28, ge=7, description="vignettes of a round's scoring, stratified by foundation; EVAL=full takes all"
    )
    full_items: int | None = Field(None, ge=7, description="vignettes of EVAL=full, likewise; without it, all")
    debias: Debias = Field("reversal", description="orders of a round's scoring; EVAL=full is cyclic")
    think: int = Field(16, ge=0, description="think tokens before the answer")
    stop: bool = Field(
        False, description="think is a ceiling: the model may end its thought; false: exactly so many tokens"
    )
    coefficients: list[float] = Field(
        [], description="further doses scored in a round, multiples of the vector; the mean of the kept rows always is"
    )
    random_draws: int = Field(3, ge=1, description="random directions of equal norm scored in a round")
    gates: list[float] = Field(
        [], description="gates of the round at which its healed student is scored as well; it always is at 1"
    )
    free_tokens: int = Field(
        24, ge=0, description="length of a free answer to the forced choice, judged as JSON; 0 for none"
    )
    contexts: int = Field(64, ge=0, description="contexts over which a student's activations are compared; 0 for none")
    heldout: str = Field("embedded", description="prompts JSONL of the free generations, each with an id of its own")
    generation_samples: int = Field(2, ge=1, description="free generations per held-out prompt")
    generation_tokens: int = Field(96, ge=1, description="length of a free generation, tokens")
    bootstrap: int = Field(2000, ge=100, description="bootstrap resamples of an interval")

    @field_validator("coefficients", "gates")
    @classmethod
    def _told_apart(cls, values: list[float]) -> list[float]:
        names = [f"{value:g}" for value in values]  # what conditions, and rows in a cache, are named by
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is there twice: values must differ in their first six digits")
        return values


class Config(Section):
    seed: int = Field(0, ge=0, lt=2**31, description="seed of sampling, training, subsets and bootstrap")
    model: ModelConfig = ModelConfig()
    vector: VectorConfig = VectorConfig()
    sweep: SweepConfig = SweepConfig()
    filter: FilterConfig = FilterConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


def band(spec: list[int] | str, depth: int, key: str = "layers") -> list[int]:
    """Layers of a band: explicit 0-based blocks, or 'a-b' as shares of the depth, ends included. key: its name, for the errors."""
    if isinstance(spec, str):
        low, _, high = spec.partition("-")
        try:
            first, last = float(low), float(high)
        except ValueError:
            raise SteerHealError(
                "a layer band could not be read",
                given=f"{key} = {spec}",
                expected="'0.45-0.55' or [14, 15]",
                next=f"mend {key}, such as {setting(f'{key}=0.45-0.55')}",
            ) from None
        layers = [index for index in range(depth) if first * depth <= index + 0.5 <= last * depth]
    else:
        layers = sorted(set(spec))
    if not layers or layers[0] < 0 or layers[-1] >= depth:
        raise SteerHealError(
            "a layer band does not fit the model",
            given=f"{key} = {spec}",
            expected=f"at least one of the layers 0 to {depth - 1}",
            next=f"mend {key}, such as {setting(f'{key}=0.45-0.55')}",
        )
    return layers


def _parse_set(text: str) -> dict[str, Any]:
    """`a.b=1 c.d=kl_fwd` as a flat mapping; a value is TOML, or else a bare string or a list of them."""
    import shlex

    values: dict[str, Any] = {}
    try:
        items = shlex.split(text)
    except ValueError as error:  # a quote that is not closed
        raise SteerHealError(
            f"{_set()} could not be read",
            given=f"{text}: {error}",
            expected="section.key=value",
            next="close the quote",
        ) from None
    for item in items:
        key, equals, raw = item.partition("=")
        if not equals:
            raise SteerHealError(
                f"{_set()} could not be read",
                given=item,
                expected="section.key=value",
                next=setting("train.lam=0.1"),
            )
        try:
            parsed = parse_toml(f"value = {raw}".encode())
            if parsed.keys() != {"value"}:
                raise ValueError("several lines")
            value = parsed["value"]
        except (ValueError, RecursionError):  # the shell and shlex have eaten the quotes of strings
            value = _words(raw)
        for name, inner in _flatten({key: value}).items():  # a table changes its keys alone
            values[name] = _merged(values.get(name), inner)
    return values


def _words(raw: str) -> Any:
    """A value without the quotes that TOML wants: a word, a list of words, or numbers such as -.5 and 1., which TOML has not."""
    if raw.startswith("[") and raw.endswith("]"):
        words = [part.strip() for part in raw[1:-1].split(",")]
        return [float(word) for word in words] if all(map(NUMBER.fullmatch, words)) else words
    return float(raw) if "." in raw and NUMBER.fullmatch(raw) else raw


def _merged(old: Any, new: Any) -> Any:
    """A value over another: of two tables, the keys of both."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new


def _flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of sections with their values; a key that goes deeper, as a.b.c, is a table under a.b."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and key in Config.model_fields and key != "seed":
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        elif key.count(".") > 1:
            section, name, *deeper = key.split(".")
            for part in reversed(deeper):
                value = {part: value}
            flat[f"{section}.{name}"] = value
        else:
            flat[key] = value
    return flat


def _set() -> str:
    """What the user calls the overrides."""
    return "SET" if form() == "make" else "--set"


def resolve(path: Path | None, overrides: str = "", model: str | None = None) -> tuple[Config, dict[str, str]]:
    """Read a configuration. Returns it with the source ('default', the file's name, 'SET' or 'MODEL') of every dotted key.

    model: model.name, which goes before that of the file.
    """
    given: dict[str, tuple[Any, str]] = {}
    if path is not None:
        try:
            tree = parse_toml(path.read_bytes())
        except FileNotFoundError:
            raise SteerHealError(
                "no configuration file",
                given=path,
                expected="a TOML file",
                next=round_command(config=_like(path)),
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise SteerHealError(
                "a configuration file could not be read", given=f"{path}: {in_one_line(error)}", expected="TOML", next=error.command(path) if isinstance(error, Convertible) else f"mend {path}"
            ) from None  # fmt: skip
        for name in BESIDE:
            tree.pop(name, None)
        given.update({key: (value, str(path)) for key, value in _flatten(tree).items()})
    for key, value in _parse_set(overrides).items():
        given[key] = (_merged(given[key][0] if key in given else None, value), "SET")
    if model is not None:
        if (other := given.get("model.name")) and other[1] == "SET" and other[0] != model:
            raise SteerHealError(
                "two models are named", given=f"{other[0]} by model.name, {model} besides", expected="one", next="leave one out"
            )  # fmt: skip
        given["model.name"] = (model, "MODEL")
    nested: dict[str, Any] = {}
    for key, (value, _) in given.items():
        section, dot, name = key.partition(".")
        if dot and isinstance(nested.setdefault(section, {}), dict):
            nested[section][name] = value
        else:
            nested[key] = value
    try:
        config = Config.model_validate(nested)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if not any(name in given for name in (key, key.rpartition(".")[0])):  # a table that is none has keys that are
            key = next((name for name in given if name.startswith(f"{key}.")), key)
        value, source = _origin(key, given) or (first["input"], "the defaults")
        meant = nearest(key, flat(Config())) if first["type"] == "extra_forbidden" else None
        raise SteerHealError(
            f"there is no configuration key {key}"
            if first["type"] == "extra_forbidden"
            else f"configuration key {key}: {first['msg'].removeprefix('Value error, ')}",
            given=f"{value!r} from {source if form() == 'make' else {'SET': '--set', 'MODEL': '--model'}.get(source, source)}",
            expected=f"did you mean {meant}?" if meant else _expected(key),
            next=f"mend the key; `{command_of('shared.config')}` lists every key with its meaning",
        ) from None
    sources = {key: given[key][1] if key in given else "default" for key in flat(config)}
    return config, sources


def _origin(key: str, given: dict[str, tuple[Any, str]]) -> tuple[Any, str] | None:
    """The value, with its source, of the key that an error is at, or else of what holds it."""
    parts = key.split(".")
    above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((given[name] for name in above if name in given), None)


def _like(path: Path) -> str:
    """The configuration file beside a missing one, or of this package, that its name is nearest to."""
    known = [str(file) for folder in (path.parent, Path("configs")) for file in sorted(folder.glob("*.toml"))]
    return nearest(str(path), known) or "configs/smollm2.toml"


def _expected(key: str) -> str:
    section, _, name = key.partition(".")
    field = Config.model_fields.get(section)
    kind = type(field.default) if field else None
    if kind is not None and issubclass(kind, Section):
        name = name.split(".")[0]
        if name in kind.model_fields:
            return kind.model_fields[name].description or name
        return f"one of {', '.join(f'{section}.{known}' for known in kind.model_fields)}"
    return f"one of {', '.join(Config.model_fields)}"


def flat(config: Config) -> dict[str, Any]:
    """Every dotted key with its value."""
    return _flatten(config.model_dump())


def to_toml(config: Config, sources: dict[str, str], begun: datetime | None = None) -> str:
    """The resolved configuration; the comment behind a value is its source. None is left out: TOML has no null.

    begun: when the run was begun that has this configuration.
    """

    def sourced(key: str, value: Any) -> Any:
        item = tomlkit.item(value)
        item.comment(sources[key])
        return item

    document = tomlkit.document()
    if begun is not None:
        document.add("begun", begun)
    for key, value in config.model_dump().items():
        if isinstance(value, dict):
            section = tomlkit.table()
            for name, inner in value.items():
                if inner is not None:
                    section.add(name, sourced(f"{key}.{name}", inner))
            document.add(key, section)
        else:
            document.add(key, sourced(key, value))
    return tomlkit.dumps(document)


def begun(path: Path) -> datetime:
    """When the run of a frozen configuration was begun: what is written there, or else its file's age, as a version before left it."""
    try:
        written = parse_toml(path.read_bytes()).get("begun")
    except (OSError, ValueError, RecursionError):
        written = None
    if isinstance(written, datetime):
        return written if written.tzinfo else written.replace(tzinfo=UTC)
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def sources_of(path: Path) -> dict[str, str]:
    """The sources that a frozen configuration has behind its values."""
    document = tomlkit.parse(decode(path.read_bytes()))
    items: dict[str, Any] = {}
    for key in document:
        item = document.item(key)
        if isinstance(item, Table):
            items.update({f"{key}.{name}": item.value.item(name) for name in item.value})
        elif isinstance(item, Item):
            items[key] = item
    return {key: item.trivia.comment.lstrip("# ") for key, item in items.items() if item.trivia.comment}


def described() -> Iterator[tuple[str, str]]:
    """Every dotted key with its meaning."""
    for section, field in Config.model_fields.items():
        if isinstance(field.default, Section):
            for name, inner in type(field.default).model_fields.items():
                yield f"{section}.{name}", inner.description or name
        else:
            yield section, field.description or section


def main() -> None:
    from shared.console import table

    arguments = config_options().parse_args()
    config, sources = resolve(getattr(arguments, "config", None), getattr(arguments, "set", ""))
    values = flat(config)
    changed = hasattr(arguments, "config") or hasattr(arguments, "set")
    rows = [[key, repr(values[key]), *([sources[key]] if changed else []), meaning] for key, meaning in described()]
    table("configuration keys", ["key", *(["value", "source"] if changed else ["default"]), "meaning"], rows)


if __name__ == "__main__":
    from shared.cli import entry

    entry(main)
