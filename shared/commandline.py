"""The options of shared's commands. Nothing heavy is imported: help, refusals and completion wait for this file."""

from __future__ import annotations

from pathlib import Path

from shared import outputs
from shared.options import Options, benchmark, overrides, parser, positive

SHELLS = ("bash", "zsh", "fish")


def init_options() -> Options:
    options = Options(
        "shared.init",
        "Write the files of a trait of your own into traits/NAME, to edit; with --check, say what is wrong with them.",
    )
    options.add_argument("name", metavar="NAME", help="name of the trait, or a folder for it whose last part is the name")  # fmt: skip
    options.add_argument("--config", type=Path, reads=outputs.parse_path, metavar="FILE", help="configuration whose other settings the trait's takes over; by default configs/smollm2.toml")  # fmt: skip
    options.add_argument("--check", action="store_true", help="look over the files of a trait that is there, and write nothing")  # fmt: skip
    return options


def round_options() -> Options:
    options = Options(
        "shared.pipeline", "Bring a run to round N: its stages in order, skipping what is done, then the report."
    )
    options.add_argument("--run", type=Path, metavar="DIR", required=True, help="run directory; one that is there goes on with its frozen configuration")  # fmt: skip
    options.add_argument("--rounds", "-N", type=positive, default=1, metavar="N", help="rounds")
    options.add_argument("--config", type=Path, metavar="FILE", help="configuration file that begins the run")
    options.add_argument("--default-config", type=Path, metavar="FILE", help="configuration file that begins the run where none is given, unless there is a run of nearly its name")  # fmt: skip
    options.add_argument("--set", type=overrides, metavar='"a.b=1 ..."', help="overrides of the configuration")
    options.add_argument("--model", help="model.name of the run that begins: 'embedded', a Hugging Face id, a local folder or a GGUF file")  # fmt: skip
    options.add_argument("--eval", choices=["round", "full"], default="round", help="items and orders of the scoring, or all items, cyclically")  # fmt: skip
    options.add_argument("--rebuild", action="store_true", help="make stages again whose settings or inputs changed")
    options.add_argument("--report", action="store_true", help="train nothing: score what is healed (with --eval full), and make the report")  # fmt: skip
    options.add_argument("--dry-run", action="store_true", help="say what it will take, and stop")
    return options


GPU_PARTS = ("verify", "parity", "sampling", "sampling, 4B", "sweep", "training", "training, 4B", "scoring", "round")


def gpu_options() -> Options:
    options = Options(
        "shared.gpu_report",
        "Measure on this machine's GPU what this package promises; goes on where it was interrupted.",
    )
    options.add_argument("--out", type=Path, writes=outputs.output_file(".json"), default=Path("docs/gpu.json"), help="file of the results")  # fmt: skip
    options.add_argument("--page", type=Path, writes=outputs.output_file(".md"), default=Path("docs/gpu.md"), help="page that gets the table")  # fmt: skip
    options.add_argument("--scratch", type=Path, default=Path("runs/gpu"), metavar="DIR", help="folder of what the parts write")  # fmt: skip
    options.add_argument("--only", action="append", default=[], choices=GPU_PARTS, help="this part alone; repeatable")
    options.add_argument("--ready", action="store_true", help="say whether there is a GPU to measure, and stop")
    return options


def begin_options() -> Options:
    options = parser("shared.begin", "Check the configuration of a run and freeze it in its config.toml.")
    options.add_argument("--model", help="model.name, which goes before that of the configuration")
    return options


def status_options() -> Options:
    options = Options("shared.status", "What runs there are, how far they are, what is running and what comes next.")
    options.add_argument("--run", type=Path, default=Path("runs"), metavar="DIR", help="a run, or a folder of runs")
    options.add_argument("--json", action="store_true", help="as JSON")
    return options


def config_options() -> Options:
    return parser("shared.config", "List every configuration key with its value, source and meaning.", stage=False)


def convert_options() -> Options:
    options = Options("shared.convert", "Write a steering vector as a control vector of llama.cpp and repeng (.gguf), or the other way round.")  # fmt: skip
    options.add_argument("--in", dest="in_", type=Path, required=True, reads=outputs.parse_path, metavar="FILE", help="vector file, .safetensors or .gguf")  # fmt: skip
    options.add_argument("--out", type=Path, required=True, writes=outputs.output_file(".safetensors", ".gguf"), metavar="FILE", help="vector file to write; its ending says the format")  # fmt: skip
    options.add_argument("--model", reads=outputs.parse_path, help="check that the vector fits: 'embedded', a Hugging Face id, a local folder or a GGUF file; a .gguf names its architecture")  # fmt: skip
    return options


def prepare_options() -> Options:
    options = Options(
        "shared.prepare", "Dequantise a model's GGUF file into the cache; of any other model, see that it can be had."
    )
    options.add_argument("--model", required=True, reads=outputs.parse_path, help="'embedded', a GGUF file, a local folder or a Hugging Face id")  # fmt: skip
    options.add_argument("--revision", help="commit of a Hugging Face model")
    return options


def doctor_options() -> Options:
    options = Options(
        "shared.doctor",
        "What this machine has, what is missing, and what to type. Exit status 2 when something is missing.",
    )
    options.add_argument("--run", type=Path, default=Path("runs"), metavar="DIR", help="where runs will be")
    options.add_argument("--quick", action="store_true", help="without importing the stages, which takes half a minute")
    return options


def bench_options() -> Options:
    options = benchmark("shared.bench", "Time set-up against plain pip, as a ratio for docs/bench.json.", "one pair")
    options.add_argument(
        "--pairs", type=positive, default=3, help="pairs, ours and pip's in turn; 3 to 10 minutes each"
    )
    return options


def completion_options() -> Options:
    options = Options("shared.completion", "Print the script that completes steer-heal's words in a shell.")
    options.epilog = 'bash: eval "$(steer-heal completion bash)"; fish: steer-heal completion fish | source'
    options.add_argument("shell", choices=SHELLS, help="whose script")
    return options
