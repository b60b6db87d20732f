"""The options of evals's commands. Nothing heavy is imported: help, refusals and completion wait for this file."""

from __future__ import annotations

from pathlib import Path

from shared import outputs
from shared.glossary import define, words
from shared.options import Options, add_file_options, benchmark, finite_number, parser, positive, whole


def score_options() -> Options:
    options = parser("evals.score", "Score a model on the forced choice.")
    options.epilog = words("auth_nats", "care_nats", "p_ans_any", "informedness")
    options.add_argument(
        "--eval",
        choices=["round", "full"],
        default="round",
        help="items and orders of a round's scoring, or all items, cyclically",
    )
    options.add_argument(
        "--cache", action="store_true", help="take scored rows from the content-addressed cache, and add what is made"
    )
    files = add_file_options(options)
    files.add_argument(
        "--model", reads=outputs.parse_path, help="'embedded', a Hugging Face id, a local folder or a GGUF file"
    )
    files.add_argument(
        "--adapter", type=Path, reads=outputs.parse_path, help="PEFT adapter folder (adapter/ or history/)"
    )
    files.add_argument("--gate", action="append", default=[], metavar="ROUND=GATE", help=f"gate of a round of the adapter, {define('gate')}; repeatable")  # fmt: skip
    files.add_argument("--vector", type=Path, reads=outputs.parse_path, help="steering vector, .safetensors or .gguf")
    files.add_argument("--coefficient", type=finite_number, nargs="+", metavar="C", help=f"{define('coefficient')}, one condition each")  # fmt: skip
    files.add_argument("--random", type=whole, default=0, metavar="D", help="random directions of equal norm, each at every coefficient")  # fmt: skip
    files.add_argument("--base", action="store_true", help="without steering as well, as the first condition")
    files.add_argument("--prompted", action="store_true", help="without steering under the trait prompt as well")
    files.add_argument("--instrument", reads=outputs.parse_path, default="embedded", help="'embedded', 'moralmaps' if that is installed, or a JSON file in the form of shared/data/instrument.json")  # fmt: skip
    files.add_argument(
        "--vignettes",
        reads=outputs.parse_path_or_set,
        default="embedded",
        help="'embedded', a JSONL file, or '<dataset id>:<configuration>:<split>'",
    )
    files.add_argument(
        "--items", type=positive, metavar="N", help="number of vignettes, stratified by foundation (default: all)"
    )
    files.add_argument("--debias", choices=["reversal", "rotating", "cyclic"], default="rotating", help="option orders: forward and reversed as published; two an item that turn from item to item, which balance the position over items; or all seven")  # fmt: skip
    files.add_argument("--think", type=whole, default=16, metavar="T", help="think tokens before the answer")
    files.add_argument("--stop", action="store_true", help="T is a ceiling: the model may end its thought")
    files.add_argument("--samples", type=positive, default=1, metavar="N", help="thoughts per item and order")
    files.add_argument("--temperature", type=finite_number, default=0.0, help="of the thoughts; 0 is greedy")
    files.add_argument("--top-k", type=whole, default=50, metavar="K", help="sampled thoughts draw from the K likeliest tokens; 0 all")  # fmt: skip
    files.add_argument("--free-tokens", type=whole, default=0, metavar="M", help="length of a free answer, judged as JSON; 0 for none")  # fmt: skip
    files.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: model.dtype)"
    )
    files.add_argument(
        "--out",
        type=Path,
        writes=outputs.output_file(".jsonl", ".parquet", inside="scores.jsonl"),
        help="score rows to write, .jsonl or .parquet",
    )
    return options


def preflight_options() -> Options:
    options = parser(
        "evals.preflight",
        "Can the model do the forced choice, and with how many think tokens? Scores the base alone at several budgets.",
        stage=False,
    )
    options.epilog = words("axis", "answer mass")
    options.add_argument("--model", reads=outputs.parse_path, help="'embedded', a Hugging Face id, a local folder or a GGUF file; by default model.name of the configuration")  # fmt: skip
    options.add_argument("--think", type=whole, nargs="+", default=[0, 4, 16, 48, 128], metavar="T", help="budgets of think tokens before the answer")  # fmt: skip
    options.add_argument("--items", type=positive, default=28, metavar="N", help="number of vignettes, stratified by foundation")  # fmt: skip
    options.add_argument("--vignettes", reads=outputs.parse_path_or_set, default="embedded", help="'embedded', a JSONL file, or '<dataset id>:<configuration>:<split>'")  # fmt: skip
    options.add_argument("--instrument", reads=outputs.parse_path, default="embedded", help="'embedded', 'moralmaps' if that is installed, or a JSON file")  # fmt: skip
    options.add_argument("--debias", choices=["rotating", "reversal", "cyclic"], default="rotating", help="option orders, as evals.score has them")  # fmt: skip
    options.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: model.dtype)"
    )
    options.add_argument("--out", type=Path, writes=outputs.output_file(".json"), help="the figures as JSON")
    options.add_argument(
        "--run",
        type=Path,
        reads=outputs.list_run_inputs,
        metavar="DIR",
        help="a run, whose model, items and orders are taken: the figures go to DIR/preflight.json, and the least budget becomes its eval.think, unless that was set or round 1 has begun",
    )
    return options


def report_options() -> Options:
    options = parser("evals.report", "Write the report of a run from its scores; --round: up to that round.")
    options.add_argument(
        "--eval",
        choices=["round", "full"],
        default="round",
        help="which scores: a round's own, or all items in cyclic orders",
    )
    return options


def compare_options() -> Options:
    options = Options(
        "evals.compare",
        "Compare two runs: settings, verdicts, figures and texts side by side. Or compare score files: each --other with the --base of the same place, paired item by item.",
    )
    options.epilog = words("d_auth", "specific_shift", "price_less_steering", "informedness", "interval")
    options.add_argument("runs", nargs="*", type=Path, reads=outputs.list_run_inputs, metavar="RUN", help="two runs that were scored alike")  # fmt: skip
    options.add_argument("--eval", choices=["round", "full"], default="round", help="of two runs: which scores, a round's own, or all items in cyclic orders")  # fmt: skip
    options.add_argument("--page", type=Path, writes=outputs.output_file(".html"), metavar="FILE", help="of two runs: the tables and the texts side by side as a page")  # fmt: skip
    options.add_argument(
        "--base",
        nargs="+",
        reads=outputs.parse_score_file,
        metavar="FILE[:NAME]",
        help="score files, one per seed; NAME is the condition, where a file holds several",
    )
    options.add_argument(
        "--other",
        nargs="+",
        reads=outputs.parse_score_file,
        metavar="FILE[:NAME]",
        help="as many score files",
    )
    more = {
        "steered": "the steered conditions, one per --other: with them a verdict is given on each --other as its healed student",
        "random": "the steered conditions with random directions of equal norm, among which the steered shift is ranked",
        "doses": "plain steering of the base at several coefficients, with which a healed student's price is compared",
        "before": "the students of the round before, one per --other: the steered shift must go beyond theirs",
    }
    for name, says in more.items():
        options.add_argument(f"--{name}", nargs="+", reads=outputs.parse_score_file, metavar="FILE[:NAME]", help=says)
    options.add_argument("--bootstrap", type=positive, default=2000, help="resamples of an interval")
    options.add_argument("--seed", type=whole, default=0, help="of the resamples")
    options.add_argument("--out", type=Path, writes=outputs.output_file(".json"), help="the figures as JSON")
    return options


def docs_results_options() -> Options:
    options = Options(
        "evals.docs_results",
        "Put a run's report into the documentation, and its numbers into the pages that quote them.",
    )
    options.add_argument("--run", type=Path, reads=outputs.list_run_inputs, required=True, metavar="DIR", help="a run with a report")  # fmt: skip
    options.add_argument("--out", type=Path, writes=outputs.output_folder(), default=Path("docs/run"), metavar="DIR", help="folder of its report in the documentation")  # fmt: skip
    options.add_argument("--page", type=Path, nargs="+", default=[Path("README.md"), Path("docs/results.md")], metavar="FILE", help="pages whose blocks <!-- results: NAME --> are rewritten")  # fmt: skip
    return options


def study_options() -> Options:
    options = Options("evals.study", "Run a study: arms x seeds x rounds, with controls.")
    options.add_argument(
        "--config", type=Path, reads=outputs.parse_path, required=True, help="configuration with a [study] table"
    )
    options.add_argument(
        "--run",
        type=Path,
        reads=outputs.list_study_inputs,
        writes=outputs.parse_path,
        required=True,
        help="folder of the cells' run directories",
    )
    options.add_argument(
        "--out", type=Path, writes=outputs.output_folder(), required=True, help="folder for results, tables and figures"
    )
    options.add_argument(
        "--report", action="store_true", help="only report on the cells that are finished; run nothing"
    )
    return options


def bench_options() -> Options:
    options = benchmark(
        "evals.bench",
        "Measure the scorer as a ratio of interleaved times; about a quarter of an hour on two cores.",
        "few items, once",
    )
    options.add_argument(
        "--vignettes",
        reads=outputs.parse_path_or_set,
        default="embedded",
        help="what is scored, as evals.score names it",
    )
    options.add_argument("--instrument", reads=outputs.parse_path, default="embedded", help="how it is asked, likewise")
    return options
