"""Convert a steering vector between our safetensors file and the control vectors of llama.cpp and repeng (docs/gguf.md)."""

from __future__ import annotations

from dataclasses import replace

from shared.cli import entry
from shared.commandline import convert_options
from shared.console import say
from shared.models import resolve_model
from shared.outputs import guard
from shared.vectors import MODEL_TYPE, load_vector


def main() -> None:
    arguments = convert_options().parse_args()
    vector = load_vector(arguments.in_)
    if arguments.model:
        model = resolve_model(arguments.model, weights=False)
        guard(arguments.outputs, [model.place])
        vector.check(arguments.in_, hidden=model.hidden, depth=model.depth)
        vector = replace(
            vector, metadata={**vector.metadata, MODEL_TYPE: model.text_config.get("model_type", "unknown")}
        )
    vector.save(arguments.out)
    layers = ", ".join(map(str, sorted(vector.layers)))
    say(f"wrote {arguments.out}: layers {layers}, width {vector.hidden}")
    if arguments.out.suffix == ".gguf" and vector.metadata.get("positions") == "generated":
        say("llama.cpp and repeng add it at all positions; it is meant for what is generated alone", "yellow")


if __name__ == "__main__":
    entry(main)
