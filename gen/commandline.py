"""The options of gen's commands. Nothing heavy is imported: help, refusals and completion wait for this file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from gen.gates import GATES, gate_list
from shared import outputs
from shared.glossary import define
from shared.options import (
    OptionGroup,
    Options,
    add_file_options,
    benchmark,
    finite_number,
    parser,
    port,
    positive,
    share,
    whole,
)

PARTS = ("A2", "A10", "B", "B16", "C")  # of the benchmark


def extract_options() -> Options:
    options = parser("gen.extract", "Extract a steering vector from a chat model.")
    files = add_file_options(options)
    files.add_argument(
        "--model", reads=outputs.parse_path, help="'embedded', a Hugging Face id, a local folder or a GGUF file"
    )
    files.add_argument(
        "--out", type=Path, writes=outputs.output_file(".safetensors"), help="vector file to write, .safetensors"
    )
    return options


def sweep_options() -> Options:
    options = parser("gen.sweep", "Sample completions over a sweep of coefficients with vLLM.")
    files = add_file_options(options)
    files.add_argument(
        "--model", reads=outputs.parse_path, help="'embedded', a Hugging Face id, a local folder or a GGUF file"
    )
    files.add_argument("--vector", type=Path, reads=outputs.parse_path, help="vector file, .safetensors or .gguf")
    files.add_argument(
        "--prompts",
        reads=outputs.parse_path_or_set,
        metavar="FILE|ID:SPLIT",
        help="JSONL, CSV or Parquet with prompt or messages, or a data set with such a column: <id>:<configuration>:<split> or <id>:<split>, where the split may be a slice as in train[:100] (docs/data.md)",
    )
    files.add_argument(
        "--coefficients",
        nargs="+",
        type=finite_number,
        help=f"{define('coefficient')}; include 0 for the unsteered completions that the filter compares with",
    )
    files.add_argument(
        "--samples", type=positive, help="completions per prompt and coefficient (default: sweep.samples)"
    )
    files.add_argument(
        "--dose",
        choices=["grid", "walk", "iso_kl"],
        help="walk finds the largest coefficient that enough completions survive, iso_kl the one at which the steered model is --kl from the unsteered one; both sample it and 0 (default: sweep.dose)",
    )
    files.add_argument(
        "--workers", type=positive, help="engines that make windows at once, one a GPU (default: sweep.workers)"
    )
    files.add_argument(
        "--cluster",
        metavar="auto|HOST:PORT",
        help="run the workers on a Ray cluster; auto is the one that runs on this machine (default: cluster.address)",
    )
    files.add_argument("--survival", type=share, help="the walk's share of survivors (default: sweep.survival)")
    files.add_argument(
        "--kl",
        type=finite_number,
        help="iso_kl's 95th percentile of KL(steered || unsteered), nats (default: sweep.dose_kl)",
    )
    files.add_argument(
        "--out",
        type=Path,
        writes=sweep_outputs,
        help="sweep rows to write: NAME.jsonl, or a folder of Parquet shards; those of a finished sweep are replaced with --rebuild alone",
    )
    return options


def settings_of_sweep(arguments: argparse.Namespace) -> list[str]:
    """The options of a sweep that stand for configuration keys, as SET would have them."""
    values = {
        "sweep.samples": arguments.samples,
        "sweep.dose": arguments.dose,
        "sweep.survival": arguments.survival,
        "sweep.dose_kl": arguments.kl,
        "sweep.workers": arguments.workers,
        "cluster.address": arguments.cluster,
    }
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def filter_options() -> Options:
    options = parser("gen.filter", "Keep the coherent completions that enact the trait.")
    files = add_file_options(options)
    files.add_argument(
        "--in",
        dest="in_",
        type=Path,
        reads=outputs.parse_path,
        metavar="FILE|DIR",
        help="sweep rows: JSONL, or a folder of shards, whose kept and rejected rows are folders in --out",
    )
    files.add_argument(
        "--out",
        type=Path,
        writes=lambda value: named_after(Path(value)),
        help="folder for kept.jsonl, rejected.jsonl and filter.json, or NAME.jsonl for the kept rows, beside NAME.rejected.jsonl and NAME.filter.json",
    )
    files.add_argument(
        "--unsteered",
        type=Path,
        reads=outputs.parse_path,
        metavar="FILE",
        help="rows of the original model at coefficient 0; by default those of --in",
    )
    return options


def card_options() -> Options:
    options = parser("gen.card", "Write the kept completions of a round as a data set with its card.")
    options.add_argument("--out", type=Path, writes=outputs.output_folder(), help="folder to write")
    options.add_argument("--push-to", metavar="ID", help="hub data set to upload to")
    options.add_argument("--private", action="store_true", help="make that data set private")
    return options


def label_options() -> Options:
    options = parser("gen.label", "Write rows of a run for a person to judge, blinded, or read them back.")
    options.add_argument("--rows", type=at_least_two, default=50, help="rows of the sheet, half of them kept")
    options.add_argument(
        "--out", type=Path, writes=lambda value: [*outputs.output_file(".csv")(value), key_file(Path(value))],
        help="sheet to write, .csv; NAME.key.json beside it says which rows were kept",
    )  # fmt: skip
    files = OptionGroup(options, "reading back")
    options.file_options = files
    files.add_argument(
        "--in", dest="in_", type=Path, reads=outputs.parse_path, metavar="FILE", help="the sheet, filled in; the figures go to NAME.json"
    )  # fmt: skip
    files.add_argument("--key", type=Path, reads=outputs.parse_path, help="its key file (default: NAME.key.json)")
    return options


def serve_options() -> Options:
    options = parser("gen.serve", "Serve a steered model over HTTP, OpenAI-compatible.", stage=False)
    options.add_argument(
        "--model",
        reads=outputs.parse_path,
        help="'embedded', a Hugging Face id, a local folder or a GGUF file; by default model.name of the configuration",
    )
    options.add_argument(
        "--adapter",
        type=Path,
        reads=outputs.parse_path,
        help="PEFT adapter folder (adapter/ or history/), merged into the weights",
    )
    options.add_argument(
        "--vector",
        action="append",
        default=[],
        reads=outputs.parse_assigned_path,
        metavar="NAME=FILE",
        help="a vector to offer; may be repeated",
    )
    _add_server_options(options)
    options.epilog = "The API key comes from VLLM_API_KEY; every endpoint but /health, /ping and the page /play asks for it. It may hold several keys with spaces between them."
    return options


def _add_server_options(options: Options) -> None:
    options.add_argument(
        "--layers",
        type=layer_list,
        default=[],
        metavar="8-20,25",
        help="further layers that vectors of clients may steer; those of --vector are always among them",
    )
    options.add_argument(
        "--slots", type=positive, default=16, help="vectors held at a time, the operator's and the clients'"
    )
    options.add_argument(
        "--keep", type=Path, metavar="DIR", help="folder in which the vectors of clients survive a restart"
    )
    options.add_argument(
        "--history",
        type=Path,
        reads=outputs.parse_path,
        help="folded history, offered as adapters: a request's model is healed-1, healed-0.5, ...",
    )
    options.add_argument(
        "--gates",
        type=gate_list,
        default=list(GATES),
        metavar="0,0.5,1",
        help=f"gates of the newest round of --history, made ahead; a gate is {define('gate')} (default: 0,0.25,0.5,0.75,1)",
    )
    options.add_argument(
        "--read", action="store_true", help="let requests ask for projections of the residual stream (steer_read)"
    )
    options.add_argument("--host", default="127.0.0.1", help="address to bind; loopback unless said otherwise")
    options.add_argument("--port", type=port, default=8000, help="port to bind")
    options.add_argument(
        "vllm", nargs="*", help="after --: options of `vllm serve`, such as -- --tensor-parallel-size 2"
    )


def play_options() -> Options:
    options = parser(
        "gen.play", "Serve a page to compare base, prompted, steered and healed on, at /play.", stage=False
    )
    options.add_argument(
        "--run", type=Path, reads=outputs.parse_path, help="a run, whose newest vector and student are played with"
    )
    options.add_argument("--round", type=positive, help="a round of the run in place of its newest")
    options.add_argument(
        "--model",
        reads=outputs.parse_path,
        help="without a run: 'embedded', a Hugging Face id, a local folder or a GGUF file",
    )
    options.add_argument(
        "--vector",
        action="append",
        default=[],
        reads=outputs.parse_assigned_path,
        metavar="[NAME=]FILE",
        help="without a run: a vector; may be repeated",
    )
    _add_server_options(options)
    return options


def layer_list(text: str) -> list[int]:
    """Layers such as 8-20,25, as argparse's type."""
    layers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        layers |= set(range(int(first), int(last or first) + 1))
    if not layers or min(layers) < 0:
        raise ValueError(text)
    return sorted(layers)


def verify_options() -> Options:
    options = parser("gen.verify", "Check that steering works on this machine and with this model.", stage=False)
    options.add_argument(
        "--model",
        reads=outputs.parse_path,
        help="'embedded', a Hugging Face id, a local folder or a GGUF file; by default model.name of the configuration",
    )
    options.add_argument(
        "--vector",
        type=Path,
        reads=outputs.parse_path,
        help="vector file; by default a random direction in vector.layers",
    )
    options.add_argument(
        "--out",
        type=Path,
        writes=outputs.output_file(".md"),
        help="Markdown file for the report, which is printed as well",
    )
    return options


def scan_options() -> Options:
    options = parser(
        "gen.scan",
        "Which layer carries the trait? Steers with the vector in each layer alone, and in vector.layers, at one relative dose.",
        stage=False,
    )
    options.add_argument(
        "--model",
        reads=outputs.parse_path,
        help="'embedded', a Hugging Face id, a local folder or a GGUF file; by default model.name of the configuration",
    )
    options.add_argument(
        "--relative-dose",
        type=finite_number,
        default=0.25,
        metavar="X",
        help="norm of what is added over the mean norm of the activations",
    )
    options.add_argument(
        "--prompts", type=positive, default=8, metavar="N", help="number of prompts taken from eval.heldout"
    )
    options.add_argument("--samples", type=positive, default=1, metavar="N", help="completions of each prompt")
    options.add_argument("--tokens", type=positive, default=48, metavar="T", help="length of a completion, tokens")
    options.add_argument("--out", type=Path, writes=outputs.output_file(".json"), help="the table as JSON")
    return options


def bench_options() -> Options:
    options = benchmark(
        "gen.bench",
        "Measure the generator as ratios of interleaved times; about an hour on two cores.",
        "few rounds, and no part C",
    )
    options.add_argument(
        "--only", choices=["A", "B", "C"], help="one part: A what steering costs, B speed-ups, C large"
    )
    options.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # a part in this process
    return options


def at_least_two(text: str) -> int:
    """A whole number from 2."""
    if whole(text) < 2:
        raise argparse.ArgumentTypeError(f"a whole number from 2, not {text!r}")
    return whole(text)


def key_file(sheet: Path) -> Path:
    """The key file of a sheet of rows to label."""
    return sheet.with_suffix(".key.json")


def throughput_options() -> Options:
    options = benchmark(
        "gen.throughput",
        "Measure how fast an engine samples at 1, 64 and 1024 sequences, and what steering costs there.",
        "few sequences and tokens",
    )
    options.add_argument(
        "--shape",
        choices=["qwen3-4b"],
        help="random weights of this model's shape instead of the embedded model: nothing is downloaded",
    )
    return options


def sweep_outputs(value: str) -> list[Path]:
    """The paths written by a sweep: its rows, a .jsonl file or a folder of shards, and the folder of windows beside them."""
    out = Path(value)
    folder = out.suffix != ".jsonl" and (out.is_dir() or not out.suffix)
    (outputs.output_folder() if folder else outputs.output_file(".jsonl"))(value)
    return [out, out.with_name(f".{out.name}.windows")]


class Outputs(NamedTuple):
    """The files that a filter writes: kept rows, rejected rows, and filter.json."""

    kept: Path
    rejected: Path
    record: Path


def named_after(out: Path) -> Outputs:
    """kept.jsonl, rejected.jsonl and filter.json of a folder, or a file of kept rows and two named after it."""
    kept = out if out.suffix and not out.is_dir() else out / "kept.jsonl"
    outputs.require_suffix(kept, ".jsonl")
    stem = "" if kept.name == "kept.jsonl" else f"{kept.stem}."
    return Outputs(kept, kept.with_name(f"{stem}rejected.jsonl"), kept.with_name(f"{stem}filter.json"))
