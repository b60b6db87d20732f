"""The largest coefficient that is accepted: inside the model's range, not far inside, and the one that the error names."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import Olmo2Config, Olmo2ForCausalLM

from gen.engine.isolation import count_overflow, overflowed, zeroer
from gen.engine.overflow import FLOAT32_MAX, STRETCH, largest_coefficient
from gen.engine.requests import Registry
from shared.errors import SteerHealError
from shared.families import FAMILIES
from shared.vectors import Vector

DTYPES = {name: float(torch.finfo(getattr(torch, name)).max) for name in ("float32", "bfloat16", "float16")}
elements = st.floats(-1e3, 1e3, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
bands = st.lists(arrays(np.float32, 16, elements=elements), min_size=1, max_size=5).map(
    lambda each: dict(enumerate(each))
)


def normed(stream: torch.Tensor) -> torch.Tensor:
    """RMSNorm as models write it: float32 for every dtype."""
    wide = stream.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(stream.dtype)


def stream_behind(layers: dict[int, np.ndarray], coefficient: float, dtype: torch.dtype, own: float) -> torch.Tensor:
    """The residual stream behind a band whose shifts all add up, over a stream of the model's own with `own` in each element."""
    stream = torch.full((1, 16), own, dtype=dtype)
    for values in layers.values():
        shift = torch.from_numpy(np.abs(values))
        stream = (stream.float() + shift * torch.tensor(coefficient, dtype=torch.float32)).to(dtype)
    return stream


@pytest.mark.parametrize("name", DTYPES)
@given(layers=bands)
def test_nothing_overflows_at_the_largest_coefficient(name: str, layers: dict[int, np.ndarray]) -> None:
    largest = largest_coefficient(layers, DTYPES[name])
    own = min(0.45 * DTYPES[name], 0.45 * math.sqrt(FLOAT32_MAX / 16))  # nearly the half that is the model's
    stream = stream_behind(layers, largest, getattr(torch, name), own)
    assert stream.isfinite().all()
    length = normed(stream).float().norm()
    assert 0.9 * 4 < length < 1.1 * 4, "as long as a norm over 16 elements makes it: the mean of the squares was finite"


@pytest.mark.parametrize("name", DTYPES)
@given(layers=bands.filter(lambda each: any(values.any() for values in each.values())))
def test_the_limit_is_not_needlessly_small(name: str, layers: dict[int, np.ndarray]) -> None:
    """A little over twice that, the half of the range that is left to the model, and the norm's square or the stream overflows."""
    beyond = 2.2 * largest_coefficient(layers, DTYPES[name])
    if beyond > FLOAT32_MAX:
        return
    stream = stream_behind(layers, beyond, getattr(torch, name), 0.0)
    squares = stream.float().pow(2).sum()
    assert not (stream.isfinite().all() and squares.isfinite())
    assert stream.isfinite().all() == (name != "float16"), "float16 ends at the stream itself, the others at its square"


@given(layers=bands)
def test_a_post_norm_model_has_room_for_the_square_of_its_gated_product(layers: dict[int, np.ndarray]) -> None:
    for model_type in [name for family in FAMILIES if family.post_norm for name in family.model_types]:
        largest = largest_coefficient(layers, DTYPES["float32"], model_type)
        total = np.sum([np.abs(values, dtype=np.float64) for values in layers.values()], axis=0)
        product = STRETCH**3 * (2 * largest * float(np.linalg.norm(total))) ** 2  # the other half is the model's own
        assert product**2 <= FLOAT32_MAX * (1 + 1e-9) or not total.any()
        assert largest <= largest_coefficient(layers, DTYPES["float32"])


class Wide(torch.nn.Module):
    """OLMo-2's RMSNorm in float64 throughout: the model's own casts to float32 for every dtype."""

    def __init__(self, norm: torch.nn.Module):
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def olmo2(aligned: bool) -> Any:
    """A small OLMo-2 of random weights whose MLPs stretch by STRETCH; aligned: one neuron reads and writes along the first element,
    which is as far as a gated product can go."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 64,
    }
    network = Olmo2ForCausalLM(Olmo2Config(**sizes, pad_token_id=0, attn_implementation="eager"))
    for layer in network.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = getattr(layer.mlp, name).weight.data
            if aligned:
                weight.zero_()[0, 0] = STRETCH
            else:
                weight.mul_(STRETCH / torch.linalg.matrix_norm(weight, 2))
    return network.eval()


def mlp_branches(network: Any, vector: np.ndarray, coefficient: float, layer: int = 0) -> torch.Tensor:
    """What the MLPs behind a steered layer add to the residual stream, after their norms: [layers behind, tokens, hidden]."""
    weight = network.lm_head.weight
    shift = torch.tensor(vector, dtype=weight.dtype) * torch.tensor(coefficient, dtype=weight.dtype)
    branches: list[torch.Tensor] = []
    behind = network.model.layers[layer + 1 :]
    hooks = [network.model.layers[layer].register_forward_hook(lambda _m, _i, out: out + shift)]
    hooks += [
        one.post_feedforward_layernorm.register_forward_hook(lambda _m, _i, out: branches.append(out)) for one in behind
    ]
    with torch.inference_mode():
        assert network(torch.arange(1, 9)[None]).logits.isfinite().all(), "nothing else would tell"
    for hook in hooks:
        hook.remove()
    return torch.stack(branches)[:, 0].double()


def widened(network: Any) -> Any:
    """The same model computed in float64."""
    wide = copy.deepcopy(network).double()
    for layer in wide.model.layers:
        for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
            setattr(layer, name, Wide(getattr(layer, name)))
        for name in ("q_norm", "k_norm"):
            setattr(layer.self_attn, name, Wide(getattr(layer.self_attn, name)))
    wide.model.norm = Wide(wide.model.norm)
    return wide


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_olmo2_computes_its_mlps_at_the_largest_coefficient(aligned: bool, dtype: str) -> None:
    """An overflow there leaves every logit finite: the norm behind it divides by infinity, and the MLP adds nothing."""
    network = olmo2(aligned)
    exact = widened(network)
    network = network.to(getattr(torch, dtype))
    vector = np.zeros(32, dtype=np.float32)
    vector[0] = 3.0
    if not aligned:
        vector = np.random.default_rng(0).standard_normal(32).astype(np.float32)
    largest = largest_coefficient({0: vector}, DTYPES[dtype], network.config.model_type)
    # the other half of the range is left to the model's own stream; an aligned gate lets no negative one through
    for coefficient in (largest, 1.9 * largest, *([] if aligned else [-largest])):
        found, wanted = mlp_branches(network, vector, coefficient), mlp_branches(exact, vector, coefficient)
        apart = (found - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert wanted.norm(dim=-1).min() > 1 and apart.max() < (1e-3 if dtype == "float32" else 0.1)
    if aligned:
        beyond = mlp_branches(network, vector, 2.3 * largest)
        assert not beyond.any() and mlp_branches(exact, vector, 2.3 * largest).any()
    pre_norm = largest_coefficient({0: vector}, DTYPES[dtype], "llama")
    assert not mlp_branches(network, vector, min(pre_norm, 1e12)).any(), "the bound of the others is none here"


@given(bands, st.sampled_from(sorted(DTYPES)))
def test_the_error_names_the_largest_coefficient_and_that_one_is_accepted(
    layers: dict[int, np.ndarray], name: str
) -> None:
    registry = Registry(slots=1, limit=DTYPES[name])
    registry.add("v", Vector(layers))

    def ask(coefficient: float) -> None:
        registry.read({"steer_vector": "v", "steer_coefficient": coefficient}, 5)

    for coefficient in (10**400, -(10**400), math.inf, -math.inf):
        with pytest.raises(SteerHealError, match="overflow") as refused:
            ask(coefficient)
    low, high = map(float, re.findall(r"from (\S+) to (\S+) for", str(refused.value))[0])
    assert low == -high and high > 0
    for accepted in (low, high):
        ask(accepted)
    for beyond in (math.nextafter(high, math.inf), math.nextafter(low, -math.inf)):
        with pytest.raises(SteerHealError, match="overflow"):
            ask(beyond)


def test_the_sum_over_layers_counts() -> None:
    """Each of eight layers would pass a bound of its own; together they overflow."""
    ones = {layer: np.ones(64, dtype=np.float32) for layer in range(8)}
    assert largest_coefficient(ones, DTYPES["float16"]) == pytest.approx(65504 / 2 / 8, rel=1e-5)
    assert largest_coefficient(ones, DTYPES["float32"]) == pytest.approx(math.sqrt(FLOAT32_MAX) / 2 / (8 * 8), rel=1e-5)


def test_a_vector_of_zeros_takes_what_the_coefficients_buffer_holds() -> None:
    assert largest_coefficient({0: np.zeros(4, dtype=np.float32)}, DTYPES["float16"]) == pytest.approx(
        FLOAT32_MAX, rel=1e-5
    )
    assert largest_coefficient({0: np.full(4, 1e-38, dtype=np.float32)}, DTYPES["float32"]) <= FLOAT32_MAX


def test_rows_that_overflowed_are_found_and_forbidden_tokens_are_not() -> None:
    logits = torch.randn(6, 50)
    logits[1, 3] = torch.nan
    logits[2, 0] = torch.inf
    logits[3, 1:] = -torch.inf
    logits[4, 4], logits[4, 5] = torch.inf, -torch.inf
    assert overflowed(logits).tolist() == [False, True, True, False, True, False]
    assert count_overflow(logits).tolist() == [0, 1, 1, 0, 1, 0]
    assert not overflowed(logits).any() and logits[3, 0].isfinite() and (logits[3, 1:] == -torch.inf).all()
    assert overflowed(torch.full((1, 60_000), 60_000.0, dtype=torch.float16)).tolist() == [False]


@given(st.sets(st.integers(0, 5)), st.sampled_from([1, 2]))
def test_blocks_and_no_others_are_zeroed_in_every_layer(ids: set[int], parts: int) -> None:
    shared = torch.full((6 * parts, 2, 3), torch.nan)
    caches = [
        shared,
        shared,
        torch.full((6 * parts, 4), torch.nan),
        [],
    ]  # a layer that shares memory, and one without attention
    zeroer(caches, 6)(sorted(ids))
    for cache in caches[:3]:
        zero = cache.reshape(6, -1).eq(0).all(1).tolist()
        assert zero == [block in ids for block in range(6)]
        assert cache.reshape(6, -1)[[block for block in range(6) if block not in ids]].isnan().all()
