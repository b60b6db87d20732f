"""What a steering server adds to vLLM's /metrics: steered requests, steered tokens, and what was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter

if TYPE_CHECKING:  # it imports torch, and gen.serve reads the limits before it starts a server
    from gen.engine.steering import Steer

requests = Counter("steer_heal:steered_requests", "Requests with a steering term that entered the engine.")
tokens = Counter("steer_heal:steered_tokens", "Tokens read under a steering term, by requests that ended.")
refusals = Counter("steer_heal:refusals", "Requests that the steering layers refused, by HTTP status.", ["code"])


def steered_tokens(steer: Steer, read: int) -> int:
    """The number of positions from 0 to read - 1 that lie in the window of a term."""
    count = reached = 0
    for _, _, start, end in sorted(steer, key=lambda term: term[2]):
        start, end = max(start, reached), min(end, read)
        count += max(0, end - start)
        reached = max(reached, end)
    return count
