"""A trained round for use elsewhere: its adapter, the folded history at any gates, or a merged checkpoint, with a model card.

What was written is read back by plain Transformers and PEFT, and its log-probabilities are compared with those of the original
weights plus the rounds' factors, both in fp32.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.adapters import BASE, Adapter, check_readable, load_adapter, loads_from, note_of
from shared.chat import Chat
from shared.cli import configured, entry, need, parse_arguments
from shared.commands import command_of, round_command
from shared.console import console, print_table, say
from shared.errors import SteerHealError
from shared.fitting import fit
from shared.folding import add, gates_of, refold, rounds_at_gates, rounds_of
from shared.hub import public_name, push
from shared.locks import hold
from shared.merging import write_merged
from shared.models import Model, load_network, resolve_model
from shared.outputs import guard
from shared.publish import atomic_folder, replaceable, write_json
from shared.records import Prompt, data_file, read_jsonl
from train.commandline import export_options

if TYPE_CHECKING:
    import torch

PROMPTS = 4  # prompts whose log-probabilities are compared
SAME = 1e-3  # nats, between two ways to compute one student in fp32
# share of the adapter's effect that an export may be off by, in fp32 and in a dtype that rounds
EXACT, HALF = 0.01, 0.5
NOISE = 0.01  # nats, of a half-precision forward itself


@dataclass(frozen=True)
class ExportCheck:
    """What was written, read back, against the exact student in fp32: over all positions of a few prompts, nats.

    difference: the largest of log-probabilities; kl: mean KL(exact || written); effect: mean KL(exact || original).
    """

    difference: float
    kl: float
    effect: float


def export(
    model: Model, source: Path, kind: str, gates: Mapping[int, float], out: Path, dtype: str, about: str, name: str
) -> ExportCheck:
    """Write the folder `out` as a whole and check it.

    source: the adapter of a round, or but for kind 'round' a folded history, whose rounds are folded again at `gates`. dtype: of
    merged weights. about: the model card; name: what PEFT is to load the original model by. Raises SteerHealError for an adapter that
    does not fit the model, a gate that is not finite, a dtype that swallows the adapter, and an export that is not the student.
    """
    with atomic_folder(out, names=()) as temporary:
        adapter = temporary / "adapter" if kind == "merged" else temporary
        if kind == "round":
            for file in ("adapter_config.json", "adapter_model.safetensors", BASE):
                if (source / file).exists():
                    shutil.copyfile(source / file, adapter / file)
        else:
            refold(source, gates, adapter)
        exact = load_adapter(adapter)
        fit(exact, model)
        if kind == "merged":
            write_merged(model, exact, temporary, dtype)
            shutil.rmtree(adapter)
        else:
            loads = {"base_model_name_or_path": name, "revision": model.revision}
            write_json(adapter / "adapter_config.json", {**exact.config, **loads})
        (temporary / "README.md").write_text(about, encoding="utf-8")
        with console.status("reading it back"):
            return _check(model, exact, temporary, kind, dtype)


def _check(model: Model, exact: Adapter, written: Path, kind: str, dtype: str) -> ExportCheck:
    import torch
    from peft import PeftModel

    chat = Chat.load(model.folder)
    rows = read_jsonl(data_file("embedded", "heldout.jsonl"), Prompt, made_by="git checkout shared/data")[:PROMPTS]
    prompts = [torch.tensor([chat.ids(row.turns)]) for row in rows]

    @torch.inference_mode()
    def logprobs(network: Any) -> torch.Tensor:
        return torch.cat([network(ids).logits[0].float().log_softmax(-1) for ids in prompts])

    network = load_network(model.folder, torch.float32)
    original = logprobs(network)
    add(network, exact)
    expected = logprobs(network)
    del network
    read = logprobs(
        load_network(written, "auto")
        if kind == "merged"
        else PeftModel.from_pretrained(load_network(model.folder, torch.float32), written)
    )

    def kl(other: torch.Tensor) -> float:
        return float((expected.exp() * (expected - other)).sum(-1).mean())

    check = ExportCheck(float((read - expected).abs().max()), kl(read), kl(original))
    rounded = kind == "merged" and dtype != "float32"
    share, noise = (HALF, NOISE) if rounded else (EXACT, 0.0)
    if check.difference > SAME and check.kl > share * check.effect + noise:
        raise SteerHealError(
            "the exported weights do not behave like the student",
            given=f"mean KL(exact || written) {check.kl:.2e} nats; the effect of the training is {check.effect:.2e} nats",
            expected=f"at most {share:g} of the effect",
            next="--dtype float32" if rounded else "compare the installed versions with requirements/: make doctor",
        )
    return check


def main() -> None:
    options = export_options()
    arguments, run = parse_arguments(options, begins=False)
    gates = gates_of(arguments.gate)
    if gates and arguments.kind == "round":
        raise SteerHealError(
            "a round's own adapter has no gate",
            given="--as round --gate",
            expected="--as history or --as merged",
            next="the same with --as history",
        )
    if run:
        config, name = run.config, run.config.model.name
        folder = run.round(arguments.round)
        source = folder / ("adapter" if arguments.kind == "round" else "history")
        training_folder = folder
    else:
        source_option = "adapter" if arguments.kind == "round" or arguments.adapter else "history"
        need(options, arguments, "model", source_option)
        config, name = configured(arguments), arguments.model
        source = training_folder = getattr(arguments, source_option)
    if not source.is_dir():
        raise SteerHealError(
            "there is nothing to export",
            given=source,
            expected="a trained round",
            next=round_command(run.folder, arguments.round) if run else command_of("train.heal", "--help"),
        )
    replaceable(arguments.out, ())
    if not (source / "gates.json").exists() and (arguments.kind == "round" or (not run and arguments.adapter)):
        check_readable(source)
    from train.card import hub_name, model_card, training_of

    model = resolve_model(name, config.model.revision)
    guard(arguments.outputs, [source, model.place])
    dtype = arguments.dtype or config.model.dtype
    if arguments.kind != "round":
        if run or arguments.adapter is None:
            rounds_of(source)  # a history must be one: an adapter alone is refused under this name
        gates = {index: gate for index, (_, gate) in enumerate(rounds_at_gates(source, gates), start=1)}
    hold(arguments.out)
    source_round = (run, arguments.round) if run else None
    about = model_card(model, arguments.kind, gates, note_of(source), training_of(training_folder), source_round)
    loads = (
        public_name(hub_name(model)) if arguments.push_to else loads_from(model)
    )  # a path of this machine is no one else's
    check = export(model, source, arguments.kind, gates, arguments.out, dtype, about, loads)
    print_table(
        f"{arguments.out}: {arguments.kind}" + (f" in {dtype}" if arguments.kind == "merged" else ""),
        ["read back by Transformers, over a few prompts", "nats"],
        [
            ["largest difference of a log-probability to the exact student", check.difference],
            ["mean KL(exact || written)", check.kl],
            ["mean KL(exact || original), the adapter's effect", check.effect],
        ],
    )
    if arguments.push_to:
        push(arguments.out, arguments.push_to, arguments.private, "model")
        say(f"uploaded to {arguments.push_to}")


if __name__ == "__main__":
    entry(main)
