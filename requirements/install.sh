#!/bin/sh
# Build .venv from a lock. Usage: PYTHON=python3.11 TORCH_INDEX=URL requirements/install.sh cpu|gpu
set -eu
lock=$1
command -v "$PYTHON" >/dev/null || {
    printf 'error: %s is not here\n  expected: Python 3.11\n  next:     install it, or name it: make setup PYTHON=/path/to/python3.11\n' "$PYTHON" >&2
    exit 2
}
echo "building .venv from requirements/$lock.txt (a few minutes)"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# torch's CPU build first, from what pip knows already or else from its own index: the other packages take no extra index.
torch=$(grep '^torch==' "requirements/$lock.txt")
if [ "$lock" = cpu ] && ! said=$(.venv/bin/pip install --quiet --no-deps "$torch" 2>&1); then
    [ -n "$TORCH_INDEX" ] || {
        printf "error: torch's CPU build could not be installed\n  given:    %s, no TORCH_INDEX; pip: %s\n" "$torch" "$(printf '%s' "$said" | tail -n 1)" >&2
        printf "  expected: where pip does not find it, its index: the URL that PyTorch's install page gives for pip and CPU\n" >&2
        printf '  next:     make setup TORCH_INDEX=URL\n' >&2
        exit 2
    }
    .venv/bin/pip install --quiet --no-deps --index-url "$TORCH_INDEX" "$torch"
fi
# --no-deps: some packages list CUDA builds that break the CPU ones; the lock is whole.
.venv/bin/pip install --quiet --no-deps -r "requirements/$lock.txt"
.venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
