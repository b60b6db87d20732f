"""The options of train's commands. Nothing heavy is imported: help, refusals and completion wait for this file."""

from __future__ import annotations

import argparse
from pathlib import Path

from shared import outputs
from shared.glossary import define
from shared.options import Options, add_file_options, benchmark, parser

KINDS = ("round", "history", "merged")  # of exports


def heal_options() -> Options:
    options = parser("train.heal", "Distil kept completions into a LoRA behind a divergence barrier.")
    files = add_file_options(options)
    files.add_argument(
        "--model", reads=outputs.parse_path, help="'embedded', a Hugging Face id, a local folder or a GGUF file"
    )
    files.add_argument(
        "--data",
        reads=outputs.parse_path_or_set,
        metavar="FILE|ID:SPLIT",
        help="JSONL, CSV or Parquet of kept rows, of prompt and completion, or of messages that end with the answer; or a data set of such rows: <id>:<configuration>:<split> or <id>:<split>, where the split may be a slice as in train[:100] (docs/data.md)",
    )
    files.add_argument("--history", type=Path, reads=outputs.parse_path, help="folded history to train over")
    files.add_argument("--out", type=Path, writes=outputs.output_folder("{}.healing"), help="adapter folder to write")
    return options


def export_options() -> Options:
    options = parser("train.export", "Write a trained round for use elsewhere, and check it.")
    files = add_file_options(options)
    files.add_argument(
        "--model", reads=outputs.parse_path, help="'embedded', a Hugging Face id, a local folder or a GGUF file"
    )
    files.add_argument(
        "--adapter",
        type=Path,
        reads=outputs.parse_path,
        help="a round's adapter; a history of one round for --as history and merged",
    )
    files.add_argument(
        "--history", type=Path, reads=outputs.parse_path, help="a folded history, for --as history and merged"
    )
    options.add_argument("--as", dest="kind", choices=KINDS, default="history", help="this round alone, all rounds folded, or merged into the weights")  # fmt: skip
    options.add_argument("--gate", action="append", default=[], metavar="ROUND=GATE", help=f"gate of a round, {define('gate')}; repeatable")  # fmt: skip
    options.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="dtype of merged weights; model.dtype by default")  # fmt: skip
    options.add_argument("--out", type=Path, writes=outputs.output_folder(), required=True, help="folder to write")
    options.add_argument("--push-to", metavar="ID", help="hub repository to upload to")
    options.add_argument("--private", action="store_true", help="make that repository private")
    return options


def bench_options() -> Options:
    options = benchmark(
        "train.bench", "Measure the trainer as ratios; about a quarter of an hour on two cores.", "few rounds"
    )
    options.add_argument("--shape", choices=["qwen3-4b"], help="instead, how fast a model of this shape with random weights is healed, in tokens a second")  # fmt: skip
    options.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)  # one peak, in this process
    return options
