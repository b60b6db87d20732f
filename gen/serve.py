"""Serve a steered model over HTTP: `vllm serve` with the patch, an OpenAI-compatible server.

A request names a vector that the operator has loaded and a coefficient, in the body's `vllm_xargs`:
{"steer_vector": "trait", "steer_coefficient": 1.5}, optionally "steer_positions": "all" | "generated". Without them it is unsteered;
with anything that is not understood it is refused with HTTP 400, and so is, with 404, an endpoint that would leave steering out.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from gen.commandline import serve_options
from gen.engine.limits import NAME
from shared.adapters import check_readable
from shared.chat import Chat
from shared.cli import configured, entry
from shared.commands import CONFIG, command_of, form, option
from shared.console import console, say
from shared.context import fitted
from shared.errors import Exit, SteerHealError, in_one_line
from shared.models import cache_folder, resolve_model
from shared.publish import digest
from shared.vectors import load_vector

OURS = {"--host", "--port", "--dtype", "--max-model-len", "--worker-cls", "--scheduler-cls", "--additional-config", "--served-model-name", "--config", "--api-key", "--load-format", "--trust-remote-code"}  # fmt: skip


def named_files(texts: list[str]) -> dict[str, Path]:
    """NAME=FILE options. Raises SteerHealError on another form, an odd or a repeated name."""
    vectors: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or not NAME.fullmatch(name) or name in vectors:
            raise SteerHealError(
                "a vector to serve could not be read",
                given=text,
                expected="NAME=FILE, names of letters, digits, '.', '_' and '-', each once",
                next=f"the same command with {_offered(Path(path or 'vector.safetensors'))}",
            )
        vectors[name] = Path(path)
    return vectors


def _offered(file: Path) -> str:
    return option("VECTORS", "--vector", f"trait={file}")


def _with_a_vector(arguments: argparse.Namespace, model: str) -> str:
    """The command that serves the newest vector that is here, or that makes one first."""
    files = [*Path().glob("*.safetensors"), *Path("runs").glob("*/rounds/*/vector.safetensors")]
    file = max(files, key=lambda path: path.stat().st_mtime, default=None)
    words = [_offered(file or Path("vector.safetensors"))]
    if arguments.model:
        words.append(option("MODEL", "--model", arguments.model))
    if (config := getattr(arguments, "config", None)) and str(config) != CONFIG:
        words.append(option("CONFIG", "--config", config))
    serve = " ".join(["make serve" if form() == "make" else command_of("gen.serve"), *words])
    return (
        serve if file else f"{command_of('gen.extract', '--model', model, '--out', 'vector.safetensors')}, then {serve}"
    )


def refuse_address(host: str, port: int) -> None:
    """Raise SteerHealError where the server cannot bind the address: taken, privileged, or not of this machine."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = addresses[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: connections that ended do not count
            tried.bind(address)
    except OSError as error:
        raise SteerHealError(
            "the server's address cannot be bound",
            given=f"{host}, port {port}: {in_one_line(error)}",
            expected="an address of this machine and a free port from 1024 on",
            next=f"the same command with {option('PORT', '--port', _free(port))}",
            code=Exit.MACHINE,
        ) from None


def _free(port: int) -> int:
    """A port near another that is free on the loopback."""
    for other in range(max(port, 8000) + 1, 65536):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", other))
            return other
    return 8000


def _within(layers: list[int], depth: int) -> list[int]:
    """The layers that clients' vectors may steer. Raises SteerHealError for one that the model does not have."""
    if layers and max(layers) >= depth:
        raise SteerHealError(
            "the model does not have such a layer",
            given=f"--layers up to {max(layers)}",
            expected=f"layers within 0 to {depth - 1}",
            next=f"the same command with --layers 0-{depth - 1}",
        )
    return layers


def restored(folder: Path) -> dict[str, Path]:
    """The vectors that clients have left in a folder, by OWNER/NAME."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.safetensors"))}


def main() -> None:
    options = serve_options()
    arguments = options.parse_args()
    config = configured(arguments)
    name = arguments.model or config.model.name
    vectors = {label: (path, load_vector(path, name)) for label, path in sorted(named_files(arguments.vector).items())}
    if not vectors and not arguments.layers:
        raise SteerHealError(
            "there is no vector to serve",
            given="no --vector",
            expected="one vector or more, or --layers for vectors that clients bring",
            next=_with_a_vector(arguments, name),
        )
    model = resolve_model(name, config.model.revision)
    config = fitted(config, model.context)
    layers = {layer for _, vector in vectors.values() for layer in vector.layers} | set(
        _within(arguments.layers, model.depth)
    )
    if arguments.keep:
        kept = {label: (path, load_vector(path, name)) for label, path in restored(arguments.keep).items()}
        vectors |= {label: (path, vector) for label, (path, vector) in kept.items() if layers >= set(vector.layers)}
    for path, vector in vectors.values():
        vector.check(path, hidden=model.hidden, depth=model.depth, model=name)
    # vLLM takes an option by the beginning of its name, with either dash, and one of its keys after a dot
    environment = {
        word.partition("=")[0].partition(".")[0].replace("_", "-") for word in arguments.vllm if word.startswith("--")
    }
    if ours := sorted(word for word in environment if any(name.startswith(word) for name in OURS)):
        raise SteerHealError(
            "an option of `vllm serve` is set by this command",
            given=" ".join(ours),
            expected="other options after --",
            next="python -m gen.serve --help",
        )
    if strange := {
        name: os.environ[name] for name in ("VLLM_PLUGINS", "VLLM_USE_RUST_FRONTEND") if os.environ.get(name)
    }:
        raise SteerHealError(
            "an environment variable keeps vLLM from reading steered requests",
            given=strange,
            expected="neither is set",
            next=f"unset {' '.join(strange)}",
        )
    if arguments.host not in ("127.0.0.1", "localhost", "::1") and not os.environ.get("VLLM_API_KEY"):
        raise SteerHealError(
            "a server beyond this machine needs an API key",
            given=f"--host {arguments.host}, no VLLM_API_KEY",
            expected="VLLM_API_KEY in the environment",
            next="export VLLM_API_KEY=..., or bind 127.0.0.1",
        )
    if arguments.adapter and arguments.history:
        raise SteerHealError(
            "a student is served merged or as adapters",
            given="--adapter and --history",
            expected="one of them",
            next="the same command without --adapter",
        )
    for folder in (arguments.adapter, arguments.history):
        if folder:
            check_readable(folder)
    refuse_address(arguments.host, arguments.port)
    template = config.model.chat_template_kwargs
    chat = Chat.load(model.folder, template, config.model.day)
    if config.model.day and chat.dated:
        template = chat.elsewhere
        if Chat(chat.tokenizer, template).dated:
            say(f"the chat template takes no date from outside: served conversations have the day's, not model.date = {config.model.date}", "yellow")  # fmt: skip
    folder = model.folder
    if arguments.adapter:
        from shared.merging import merged

        folder = merged(model, arguments.adapter, cache_folder() / "students", config.model.dtype).folder
    adapters: list[str] = []
    if arguments.history:
        from gen.gates import adapter_options

        adapters = adapter_options(arguments.history, model, config.model.dtype, arguments.gates)
    from gen.engine.drain import SECONDS
    from gen.engine.options import (
        WITHOUT_TOOLKIT,
        command_line,
        memory_options,
        parallel_options,
        platform_options,
        precision_options,
        set_unless_set,
    )
    from gen.engine.plugin import SCHEDULER, WORKER
    from gen.engine.settings import Settings, VectorFile

    settings = Settings(
        layers=sorted(layers),
        slots=max(arguments.slots, len(vectors)),
        stop_ids=list(chat.stop_ids),
        vectors={
            name: VectorFile(path=str(path.resolve()), sha256=digest(path)) for name, (path, _) in vectors.items()
        },
        folder=str(arguments.keep.resolve()) if arguments.keep else None,
        model=model.fingerprint,
        read=arguments.read,
    )
    command = [
        *(sys.executable, "-m", "gen.engine.launch", "serve", str(folder)),
        *("--served-model-name", name, "--host", arguments.host, "--port", str(arguments.port)),
        *(
            "--load-format",
            "safetensors",
            "--dtype",
            config.model.dtype,
            "--max-model-len",
            str(config.model.max_model_len),
        ),
        *("--worker-cls", WORKER, "--scheduler-cls", SCHEDULER),
        *("--additional-config", json.dumps({"steering": settings.model_dump()})),
        *(
            word
            for name in (
                "vectors.Vectors",
                "play.Play",
                "limits.StrictBody",
                "limits.BodyLimit",
                "limits.Gate",
                "drain.Drain",
            )
            for word in ("--middleware", f"gen.engine.{name}")
        ),
        *(("--default-chat-template-kwargs", json.dumps(template)) if template else ()),
        *command_line(
            {
                **platform_options(),
                **memory_options(config.model.gpu_memory),
                **parallel_options(config.model.tensor_parallel),
                **precision_options(folder, config.model.dtype),
            }
        ),
        *("--shutdown-timeout", str(SECONDS)),
        *adapters,
        *arguments.vllm,
    ]
    console.print(
        f"starting {name} with {', '.join(vectors) or 'no vector yet'} on http://{arguments.host}:{arguments.port}/v1; "
        "ready when the log says 'Application startup complete'"
    )
    sys.stdout.flush()
    set_unless_set({"VLLM_NO_USAGE_STATS": "1", **WITHOUT_TOOLKIT})
    os.execv(sys.executable, command)


if __name__ == "__main__":
    entry(main)
