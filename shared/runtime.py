"""How a process waits for its threads and collects its garbage, set before the libraries that make the difference."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator


def limit_spinning() -> None:
    """Let OpenMP's threads sleep soon at a barrier; called before torch is imported, and a user's own setting wins.

    libgomp's threads spin 300 000 times before they sleep. Beside another process that burns the very time that the thread they wait
    for would need: two such processes on two cores are not half as fast each but a fifth (docs/profile.md).
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"


@contextlib.contextmanager
def gc_disabled() -> Iterator[None]:
    """Without garbage collection inside: around the import of a large library, whose objects stay and would be searched in vain.

    A sixth of the time to import vLLM or Unsloth is such searches.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
