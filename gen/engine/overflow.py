"""The largest coefficient of a vector that no number of the model overflows under.

Behind a band of steered layers the residual stream r holds its own part and, in element i, at most |c| * S_i with
S_i = sum over layers of |v_l,i|, whatever the signs. What reads r depends on the architecture:

1. Pre-norm (Llama, Qwen, Gemma, Mistral, Phi, ...): every block reads x = r / sqrt(mean(r_i^2) + eps). x is at most
   sqrt(hidden) long, so no later product grows with c. Two numbers can overflow:
   - r itself, which the dtype holds: |r_i| up to 65504 in float16, 3.39e38 in bfloat16, 3.40e38 in float32;
   - sum(r_i^2), which the norm computes in float32 for every dtype: ||r|| up to sqrt(3.40e38) = 1.84e19. Beyond it
     1 / sqrt(inf) is 0 and every token gets the same logit: finite numbers, and wrong.
   In float32 and bfloat16 the square is the first, nineteen decades before r. In float16 it is r: a stream at 65504 in every
   element of 576 is 1.6e6 long.
2. Post-norm (OLMo-2; `post_norm` in shared/families.py): the blocks read r itself. The gated MLP multiplies two projections of it and projects the product,
   s^3 * ||r||^2 for projections that stretch by at most s, and the norm after it squares that: s^6 * ||r||^4 <= 3.40e38.
   With s = 100, ||r|| up to 4.3e6. In float16 the product passes 65504 at s * ||r|| = 256, so that r has no useful bound
   there: such an overflow is infinite where it is stored, and ends as an error of its request (gen/engine/scheduler.py).

The shift gets half of a range and the model's own residual the other half. A coefficient travels as float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_FLOOR, Context

import numpy as np

from shared.families import family_of

FLOAT32_MAX = float(np.finfo(np.float32).max)
ROOM = 0.5  # of a range, for the shift
STRETCH = 100.0  # of a post-norm model's projections, at most


def max_residual_norm(model_type: str) -> float:
    """The largest 2-norm of a residual stream at which no product computed from it overflows float32."""
    if family_of(model_type).post_norm:
        return (FLOAT32_MAX / STRETCH**6) ** 0.25
    return math.sqrt(FLOAT32_MAX)


def largest_coefficient(layers: Mapping[int, np.ndarray], dtype_max: float, model_type: str = "") -> float:
    """The largest |c| that is accepted for a vector, rounded down to six digits so that an error can print it exactly.

    Args:
        layers: model layer -> vector [hidden], fp32.
        dtype_max: the largest finite number of the model's dtype.
        model_type: of the text model's configuration; it decides which products are computed from the residual stream.
    """
    total = np.sum([np.abs(values.astype(np.float64)) for values in layers.values()], axis=0)
    element, length = float(total.max()), float(np.linalg.norm(total))
    bounds = [FLOAT32_MAX]
    if element > 0:
        bounds += [ROOM * dtype_max / element, ROOM * max_residual_norm(model_type) / length]
    return float(Context(prec=6, rounding=ROUND_FLOOR).create_decimal_from_float(min(bounds)))
