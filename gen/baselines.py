"""The same sweep without this package: Hugging Face generate with forward hooks, three ways.

Once per coefficient is how activation addition is usually sampled (Turner et al. 2023, arXiv 2308.10248; Panickssery et al.
2023, arXiv 2312.06681): a hook adds the scaled vector, the prompts are one batch. A coefficient per row is the best that hooks
can do: the sweep is one batch, but it runs to its longest row and no row joins while it does. One completion at a time is the
README of the library steering-vectors (Chanin and Tan, https://github.com/steering-vectors/steering-vectors).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import SteerHealError
from shared.layers import decoder_layers
from shared.models import load_network
from shared.vectors import Vector

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: at most max_tokens tokens, at least min_tokens; temperature 0 is greedy; seed of the whole call."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.9
    seed: int = 0


class Hooked:
    """A Hugging Face model whose layers `vector` names add a coefficient per row of the batch to their output.

    dtype and device by their torch names. stop is the token that ends a turn; pad any token, since padding is masked.
    """

    def __init__(self, folder: Path, vector: Vector, *, dtype: str, stop: int, pad: int, device: str = "cpu"):
        import torch

        self._hook(load_network(folder, getattr(torch, dtype)).to(device), vector, stop, pad, device)

    @classmethod
    def of(cls, network: Any, vector: Vector, *, stop: int, pad: int) -> Hooked:
        """A network that is loaded already."""
        hooked = cls.__new__(cls)
        hooked._hook(network, vector, stop, pad, str(next(network.parameters()).device))
        return hooked

    def _hook(self, network: Any, vector: Vector, stop: int, pad: int, device: str) -> None:
        self.network, self.vector, self.stop, self.pad, self.device = network, vector, stop, pad, device
        self._layers = decoder_layers(network, network.config.get_text_config().num_hidden_layers)[1]

    @contextlib.contextmanager
    def steered(self, coefficients: Sequence[float]) -> Iterator[None]:
        """Within this block row i of a batch is steered by coefficients[i], at every position."""
        import torch

        scale = torch.tensor(coefficients, dtype=torch.float32, device=self.device)[:, None, None]

        def adding(values: torch.Tensor) -> Any:
            shift = (scale * values.to(self.device)).to(self.network.dtype)
            return lambda _module, _inputs, output: (
                (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift
            )

        handles = [
            self._layers[layer].register_forward_hook(adding(torch.from_numpy(values)))
            for layer, values in self.vector.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def padded(self, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask, padded on the left, so that every row's next token is in the last column."""
        import torch

        width = max(map(len, prompts))
        rows = {
            "input_ids": [[self.pad] * (width - len(ids)) + list(ids) for ids in prompts],
            "attention_mask": [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts],
        }
        return {name: torch.tensor(values, device=self.device) for name, values in rows.items()}

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """The completions of one batch, each up to and with the token that ends its turn."""
        import torch

        torch.manual_seed(sampling.seed)
        batch = self.padded(prompts)
        drawn = (
            {"do_sample": True, "temperature": sampling.temperature, "top_p": 1.0, "top_k": 0}
            if sampling.temperature
            else {"do_sample": False}
        )
        with torch.inference_mode():
            rows = self.network.generate(
                **batch,
                **drawn,
                max_new_tokens=sampling.max_tokens,
                min_new_tokens=sampling.min_tokens or None,
                eos_token_id=self.stop,
                pad_token_id=self.pad,
            )
        return [self._ended(row) for row in rows[:, batch["input_ids"].shape[1] :].tolist()]

    def _ended(self, row: list[int]) -> list[int]:
        return row[: row.index(self.stop) + 1] if self.stop in row else row


Work = Sequence[tuple[Sequence[int], float]]


def per_coefficient(model: Hooked, work: Work, sampling: Sampling) -> list[list[int]]:
    """One batch of prompts for each coefficient. work: (prompt ids, coefficient) per completion; results in its order."""
    places: dict[int, list[int]] = {}
    for coefficient in dict.fromkeys(coefficient for _, coefficient in work):
        indices = [index for index, (_, other) in enumerate(work) if other == coefficient]
        with model.steered([coefficient] * len(indices)):
            places.update(zip(indices, model.generate([work[index][0] for index in indices], sampling), strict=True))
    return [places[index] for index in range(len(work))]


def per_row(model: Hooked, work: Work, sampling: Sampling) -> list[list[int]]:
    """All completions in one batch, a coefficient per row.

    Args:
        model: with its hooks.
        work: prompts and coefficients.
        sampling: how every completion is sampled.
    """
    with model.steered([coefficient for _, coefficient in work]):
        return model.generate([ids for ids, _ in work], sampling)


def one_at_a_time(model: Hooked, work: Work, sampling: Sampling) -> list[list[int]]:
    """One completion at a time under steering-vectors; coefficient 0 without it, which favours the library.

    Args:
        model: with its hooks.
        work: prompts and coefficients.
        sampling: how every completion is sampled.
    """
    outputs = []
    for ids, coefficient in work:
        with steering_vectors_context(model, coefficient) if coefficient else contextlib.nullcontext():
            outputs += model.generate([ids], sampling)
    return outputs


def steering_vectors_context(model: Hooked, coefficient: float) -> Any:
    """The context in which steering-vectors steers the model by coefficient times its vector."""
    try:
        from steering_vectors import SteeringVector
    except ModuleNotFoundError as error:
        raise SteerHealError(
            "the library to compare with is not installed", given=error, expected="steering-vectors", next="make bench"
        ) from None
    import torch

    layers = {layer: torch.from_numpy(values) for layer, values in model.vector.layers.items()}
    return SteeringVector(layers).apply(model.network, multiplier=coefficient)


def version() -> dict[str, str]:
    """The installed version of the library, empty without it."""
    from importlib import metadata

    try:
        return {"steering-vectors": metadata.version("steering-vectors")}
    except metadata.PackageNotFoundError:
        return {}
