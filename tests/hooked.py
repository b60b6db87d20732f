"""The oracle of the steered engine: a plain HF forward with the vector added to the layers' outputs by hooks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from shared.models import cap_attention
from shared.vectors import Vector


class Hooked:
    """fp32; adapter is merged into the weights by PEFT."""

    def __init__(self, folder: Path, vector: Vector, adapter: Path | None = None):
        from transformers import AutoModelForCausalLM

        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        cap_attention(self.network)
        if adapter is not None:
            from peft import PeftModel

            self.network = PeftModel.from_pretrained(self.network, str(adapter)).merge_and_unload()
        self.coefficient, self.start = 0.0, 0
        for layer, values in vector.layers.items():
            self.network.get_decoder().layers[layer].register_forward_hook(self._add(torch.from_numpy(values)))

    def _add(self, values: torch.Tensor) -> object:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            shift = torch.zeros_like(output)
            shift[:, self.start :] = self.coefficient * values
            return output + shift

        return hook

    @torch.inference_mode()
    def logprobs(self, ids: list[int], coefficient: float, start: int = 0) -> torch.Tensor:
        self.coefficient, self.start = coefficient, start
        return self.network(torch.tensor([ids])).logits[0].log_softmax(-1)

    def of_tokens(self, ids: list[int], coefficient: float, start: int = 0) -> np.ndarray:
        table = self.logprobs(ids, coefficient, start)[:-1]
        return table[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].numpy()


class Windowed:
    """The oracle of several terms: each a vector with a coefficient and the half-open window of positions it is added to."""

    def __init__(self, folder: Path, layers: list[int]):
        from transformers import AutoModelForCausalLM

        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.terms: list[tuple[Vector, float, int, int]] = []
        self.layers = layers
        for layer in layers:
            self.network.get_decoder().layers[layer].register_forward_hook(self._add(layer))

    def _add(self, layer: int) -> object:
        def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            shift = torch.zeros_like(output)
            for vector, coefficient, start, end in self.terms:
                if layer in vector.layers:
                    shift[:, start:end] += coefficient * torch.from_numpy(vector.layers[layer])
            return output + shift

        return hook

    @torch.inference_mode()
    def logprobs(self, ids: list[int], terms: list[tuple[Vector, float, int, int]]) -> torch.Tensor:
        """[len(ids), vocabulary], of the token that follows each."""
        self.terms = terms
        return self.network(torch.tensor([ids])).logits[0].log_softmax(-1)

    def streams(self, ids: list[int], terms: list[tuple[Vector, float, int, int]]) -> dict[int, np.ndarray]:
        """[len(ids), hidden] behind each of the layers: the residual stream as the next layer reads it."""
        caught: dict[int, np.ndarray] = {}

        def catch(layer: int) -> object:
            def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
                caught[layer] = output[0].numpy().copy()

            return hook

        stack = self.network.get_decoder().layers
        handles = [stack[layer].register_forward_hook(catch(layer)) for layer in self.layers]
        self.logprobs(ids, terms)
        for handle in handles:
            handle.remove()
        return caught
