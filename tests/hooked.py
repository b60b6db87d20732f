"""The oracle of the steered engine: a plain HF forward with the vector added to the layers' outputs by hooks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from shared.vectors import Vector


class Hooked:
    """fp32; adapter is merged into the weights by PEFT."""

    def __init__(self, folder: Path, vector: Vector, adapter: Path | None = None):
        from transformers import AutoModelForCausalLM

        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
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
