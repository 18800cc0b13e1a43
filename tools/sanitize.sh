#!/bin/sh
# Runs the GPU tests under three of compute-sanitizer's checkers. Fails where it cannot: a check that did not
# run must not look like one that passed.
set -eu
PYTHON=${PYTHON:-python}

sanitizer=
packages=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for place in "$(command -v compute-sanitizer || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
    "$packages"/nvidia/cu*/bin/compute-sanitizer; do
    if [ -x "$place" ]; then
        sanitizer=$place
        break
    fi
done
if [ -z "$sanitizer" ]; then
    echo "make sanitize needs compute-sanitizer, which is neither on PATH nor in CUDA_HOME/bin. It comes with" \
        "the CUDA toolkit, or by: $PYTHON -m pip install nvidia-cuda-sanitizer-api" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "make sanitize needs a CUDA device, and torch sees none here." >&2
    exit 1
fi

# torch's caching allocator hides accesses beyond a tensor that stay within its block. It cannot be turned off
# under a graph capture. Only this library's kernels are checked: torch's are many, slow, and not ours to mend.
set -x
env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool memcheck --error-exitcode 1 \
    --kernel-name kns=involution "$PYTHON" -m pytest -m gpu -k "not graph" "$@"
"$sanitizer" --tool racecheck --error-exitcode 1 --kernel-name kns=involution "$PYTHON" -m pytest -m gpu "$@"
# This one has to see the kernels of torch that write what ours read.
env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool initcheck --error-exitcode 1 \
    "$PYTHON" -m pytest -m gpu -k "not graph" "$@"
