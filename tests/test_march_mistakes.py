"""Mistakes planted in the marching kernels themselves are caught where the kernels are executed on the host.

The sources of csrc are copied, one line is changed, and a small program (tests/host/mistaken.cpp) is built from
the copy, with sanitizers. The unchanged copy passes.
"""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import host_build
import pytest

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

# The file, what stands there, what takes its place, and what the program then says.
MISTAKES = {
    "none": ("march.cuh", "", "", "fma right, band right"),
    "a wait too few": (
        "march.cuh",
        "wait_for_copies_but(m.stages - 2);",
        "wait_for_copies_but(m.stages - 1);",
        "a race",
    ),
    "no wait for the first step": ("launch_march.cuh", "  wait_for_copies<0>();\n", "", "WRONG"),
    "no barrier": (
        "march.cuh",
        "      wait_for_copies_but(m.stages - 2);\n      meet();\n",
        "      wait_for_copies_but(m.stages - 2);\n",
        "a race",
    ),
    "no zeros outside": (
        "march.cuh",
        "copy_or_clear<kBytes>(to, aligned(from), static_cast<unsigned>(segment - begin) < count);",
        "copy_or_clear<kBytes>(to, aligned(from), count > 0);",
        "heap-buffer-overflow",
    ),
    "no zeros above and below": (
        "march.cuh",
        "unsigned count = inside ? share.count : 0;",
        "unsigned count = share.count;",
        "heap-buffer-overflow",
    ),
    "a ring too short": (
        "march.cuh",
        "if (source_at >= m.source.rows * m.source.row_pitch)",
        "if (source_at >= (m.source.rows - 1) * m.source.row_pitch)",
        "in front of shared memory",
    ),
    "a read behind the last unit": (
        "band_forward.cuh",
        "own.live[kUnits - 1] ? of_unit : 0",
        "of_unit",
        "a race",
    ),
    "results of the wrong step": (
        "march.cuh",
        "((step - 1) & 1) * m.result.next",
        "(step & 1) * m.result.next",
        "a race",
    ),
}


def run(name: str, folder: Path, others: list[Path]) -> str:
    """Builds the program with one mistake, of it and the objects `others`, and runs it: what it prints."""
    file, right, wrong, _ = MISTAKES[name]
    sources = folder / "csrc"
    shutil.copytree(host_build.ROOT / "csrc" / "cuda", sources / "cuda")
    shutil.copy(host_build.ROOT / "csrc" / "involution.h", sources)
    text = (sources / "cuda" / file).read_text()
    assert right == "" or text.count(right) == 1, f"{file} has {text.count(right)} times {right!r}"
    (sources / "cuda" / file).write_text(text.replace(right, wrong) if right else text)
    program = folder / "mistaken"
    inputs = [host_build.HOST / "mistaken.cpp", *others]
    include = [f"-I{host_build.HOST}", f"-I{sources}"]
    subprocess.run(
        ["g++", *host_build.FLAGS, *include, *map(str, inputs), "-o", str(program)],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [program], env=host_build.environment(), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode == 0) == (name == "none"), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_mistake_is_caught(tmp_path: Path) -> None:
    folders = [tmp_path / str(index) for index in range(len(MISTAKES))]
    for folder in folders:
        folder.mkdir()
    others = host_build.objects([host_build.ROOT / "csrc" / "cuda" / "plan.cpp"])  # no mistake is in there
    with ThreadPoolExecutor(2) as pool:
        outputs = dict(zip(MISTAKES, pool.map(run, MISTAKES, folders, repeat(others)), strict=True))
    for name, (*_, expected) in MISTAKES.items():
        assert expected in outputs[name], f"{name}: {outputs[name][-2000:]}"
