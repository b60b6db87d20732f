"""The command line of a stage: common options, quiet libraries, and errors rendered in one place."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from shared import (
    code,  # noqa: F401  takes the digest of the code at the start of every command
    stage,
)
from shared.commands import CONFIG, as_typed, option, round_command, setting
from shared.config import resolve_config
from shared.console import console
from shared.errors import Exit, SteerHealError, in_one_line, take_error_file
from shared.locks import RUNNER
from shared.machine import process_began
from shared.nearby import nearest_run, no_such_run
from shared.options import Options
from shared.outputs import guard, input_paths
from shared.process import watch_extensions
from shared.run import Run, open_run
from shared.runtime import limit_spinning
from shared.schema import Config
from shared.system import refused_path

_interrupted: int | None = None  # the signal that asked this process to end
FULL = ("No space left on device", "os error 28", "PytorchStreamWriter failed", "enforce fail at inline_container")
TAKEN = ("Free memory on device",)  # in vLLM's words
CRAMPED = ("No available memory for the cache blocks", "KV cache is needed, which is larger")


def parse_arguments(
    options: Options, *, in_round: bool = True, begins: bool = True
) -> tuple[argparse.Namespace, Run | None]:
    """The arguments, and the run they name or None when the stage works on plain files. Raises SteerHealError on a mixture.

    begins: whether a configuration begins a run that is not there; a command that only reads one does not.
    """
    arguments = options.parse_args()
    if not hasattr(arguments, "run"):
        return arguments, None
    files = options.file_options.actions if options.file_options else []
    if mixed := [option.option_strings[0] for option in files if getattr(arguments, option.dest) != option.default]:
        raise SteerHealError(
            "options of plain files do not go with --run",
            given=" ".join(mixed),
            expected="--run and --round alone: a run's files and settings are its own",
            next=f"leave them out, or see {options.prog} --help",
        )
    if in_round and getattr(arguments, "round", 0) < 1:
        raise SteerHealError(
            "a stage of a run needs its round",
            given=getattr(arguments, "round", "no --round"),
            expected="1 or more",
            next=f"{options.prog} --run {shlex.quote(str(arguments.run))} --round 1",
        )
    if not (arguments.run / "config.toml").is_file():
        _no_such_run(arguments, begins)
    return arguments, open_run(
        arguments.run,
        getattr(arguments, "config", None),
        getattr(arguments, "set", None),
        arguments.rebuild,
        model=getattr(arguments, "model", None) if not options.file_options else None,
        rounds=getattr(arguments, "rounds", getattr(arguments, "round", None)),
        dry=getattr(arguments, "dry_run", False),
    )


def _no_such_run(arguments: argparse.Namespace, begins: bool) -> None:
    """Raise SteerHealError for a run that is not there, unless the command begins it and its name is no likely typo."""
    folder, rounds = arguments.run, getattr(arguments, "rounds", None) or 1
    options: dict[str, Any] = {"config": getattr(arguments, "config", None), "overrides": getattr(arguments, "set", None), "model": getattr(arguments, "model", None)}  # fmt: skip
    default = getattr(arguments, "default_config", None)
    meant = None if any(options.values()) else nearest_run(folder)
    if begins and (any(options.values()) or (default and not meant)):
        arguments.config = options["config"] or default
        return
    if meant or not begins:
        begin = round_command(
            folder, rounds, **{**options, "config": options["config"] or default or (CONFIG if meant else None)}
        )
        again = f"the same command with {option('RUN', '--run', meant)}"
        if hasattr(arguments, "report"):  # `make round` and `make report`
            report = arguments.report
            again = round_command(meant, None if report else rounds, target="report" if report else "round")
        raise no_such_run(folder, f"{again}; or begin a new run: {begin}" if meant else begin, meant)


def need(options: Options, arguments: argparse.Namespace, *names: str) -> None:
    """Refuse a call that has neither a run nor the plain-file options."""
    missing = [f"--{name.rstrip('_')}" for name in names if getattr(arguments, name, None) is None]
    if missing:
        raise SteerHealError(
            "options are missing",
            given=" ".join(sys.argv[1:]) or "none",
            expected=f"--run DIR --round K, or {' '.join(missing)}",
            next=f"{options.prog} --help",
        )


def configured(arguments: argparse.Namespace, *overrides: str) -> Config:
    """The configuration that --config and --set of a plain-file stage give; overrides go after those of --set."""
    config = resolve_config(getattr(arguments, "config", None), " ".join([getattr(arguments, "set", ""), *overrides]))[
        0
    ]
    guard(arguments.outputs, input_paths(config))
    return config


def quiet() -> None:
    """Turn down libraries that talk at import; a value the user has set wins."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def entry(main: Callable[[], None]) -> None:
    """Run the main of a stage, and end the process with one of the codes of `shared.errors.Exit`.

    A SteerHealError is printed to stderr. An interruption or SIGTERM ends with 130. Any other error is printed in one line, with its
    traceback in a file.
    """
    take_error_file()
    stage.began = process_began()
    quiet()
    limit_spinning()
    watch_extensions()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background job has it
        signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except SteerHealError as error:
        _stop(error)
    except KeyboardInterrupt:
        if os.environ.get(RUNNER) == str(os.getppid()):  # which says it, once for all its stages
            by = signal.Signals(_interrupted or signal.SIGINT).name
            SteerHealError("interrupted", given=by, next="the same command goes on", code=Exit.INTERRUPTED).hand_over()
        else:
            console.print("[yellow]interrupted; what is finished is kept, the same command goes on from there[/]")
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        if (refused := _refused(error)) is not None:
            _stop(refused)
        if (short := _short_of_memory(error)) is not None:
            _stop(short)
        _stop(_unknown(error))


def _interrupt(number: int, _: object) -> None:
    global _interrupted
    _interrupted = number
    raise KeyboardInterrupt


def heed_interruption() -> None:
    """Raise KeyboardInterrupt again where a library has swallowed one, as importing Unsloth may."""
    if _interrupted:
        raise KeyboardInterrupt


def _chain(error: BaseException | None) -> Iterator[Exception]:
    """An error, and the errors that caused it."""
    while isinstance(error, Exception):
        yield error
        error = error.__cause__ or error.__context__


def _refused(error: Exception) -> SteerHealError | None:
    """The message of the system where a system error, such as a full disk, caused an error; safetensors and torch wrap it in other words."""
    if (refused := refused_path(error)) is not None:
        return refused
    for cause in _chain(error):
        if (refused := refused_path(cause)) is not None and refused.code in (Exit.UNWRITTEN, Exit.MACHINE):
            return refused
        if any(words in str(cause) for words in FULL):
            return SteerHealError(
                "a file could not be written",
                code=Exit.UNWRITTEN,
                given=str(cause).splitlines()[0],
                expected="a writable place with room",
                next="free the space (df -h), then the same command goes on",
            )
    return None


def _short_of_memory(error: Exception) -> SteerHealError | None:
    """What to do where a lack of memory caused an error: vLLM takes its share of a GPU before it begins, torch as it goes."""
    for cause in _chain(error):
        place = "a GPU"
        if any(words in str(cause) for words in TAKEN):
            expected, mend = "the share that vLLM takes free on the device", setting("model.gpu_memory=0.5")
        elif any(words in str(cause) for words in CRAMPED):
            expected = "room for the cache beside the weights, in the share that vLLM takes"
            mend = f"{setting('model.gpu_memory=0.95')}, or a lower model.max_model_len"
        elif type(cause).__name__ == "OutOfMemoryError" or _of_the_machine(cause):
            if _of_the_machine(cause):
                place = "this machine"
            if "unsloth" in sys.modules:
                expected = "room for the activations of a micro-batch"
                mend = f"{setting('train.gradient_checkpointing=true')}, or a lower train.batch_size"
            elif "vllm" in sys.modules:
                expected = "room beside the share that vLLM takes"
                mend = setting("model.gpu_memory=0.8" if place == "a GPU" else "model.dtype=bfloat16")
            else:
                expected, mend = "room for the model in fp32 and a batch of contexts", setting("vector.batch_size=4")
        else:
            continue
        return SteerHealError(
            f"{place}'s memory does not suffice",
            code=Exit.MACHINE,
            given=in_one_line(cause),
            expected=expected,
            next=f"end other work there, or {mend} (with REBUILD=1 or --rebuild in a run that has begun, but for model.gpu_memory)",
        )
    return None


def _of_the_machine(error: Exception) -> bool:
    """Whether an error says that the machine's own memory is full: Python's, or torch's allocator's."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def _unknown(error: Exception) -> SteerHealError:
    whole = "".join(traceback.format_exception(error))  # not the command line, which may hold a key
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="steer-heal-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(whole)
        where = f"all that is known of it is in {file.name}"
    except OSError as unwritten:
        where = f"what is known of it could not be written: {in_one_line(unwritten)}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return SteerHealError(
        "an error that this program does not know",
        code=Exit.UNKNOWN,
        given=f"{in_one_line(error)} ({place.filename}:{place.lineno})",
        expected=f"none; {where}",
        next="read it, and report it with the command; what is finished is kept, the same command goes on from there",
    )


def _stop(error: SteerHealError) -> None:
    error.next = as_typed(error.next)
    sys.stdout.flush()
    print(error.render(), file=sys.stderr)
    error.hand_over()
    sys.exit(error.code)
