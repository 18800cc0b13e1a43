#!/bin/sh
# Records a profile of benchmarks/profile.py, whose NVTX ranges name the operations.
set -eu
PYTHON=${PYTHON:-python}

if ! command -v nsys >/dev/null; then
    echo "make profile needs nsys, from NVIDIA Nsight Systems: install the package nsight-systems of your" \
        "distribution or of NVIDIA's CUDA repository, and put nsys on PATH." >&2
    exit 1
fi
exec nsys profile --trace=cuda,nvtx,osrt --force-overwrite=true --output=involution "$PYTHON" -m benchmarks.profile
