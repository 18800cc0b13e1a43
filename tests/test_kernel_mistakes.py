"""Mistakes planted in the kernels themselves are caught where the kernels are executed on the host.

The sources of csrc are copied, one line is changed, and a small program (tests/host/mistaken.cpp, or mistaken_fused.cpp
and mistaken_backward.cpp for the fused layer) is built from the copy, with sanitizers. The unchanged copy passes.
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
    "no rows of the first step alone": ("march.cuh", ".bring(m.halo);", ".bring(0);", "WRONG"),
    "no barrier": (
        "march.cuh",
        "      wait_for_copies_but(m.stages - 2);\n      meet();\n",
        "      wait_for_copies_but(m.stages - 2);\n",
        "a race",
    ),
    "no zeros outside": (
        "march.cuh",
        "if (!m.cleared) rows.clear_outside();",
        "",
        "WRONG",
    ),
    "columns outside": ("share.cuh", "first = smaller(first, end);", "first = 0;", "AddressSanitizer"),
    "no zeros above and below": (
        "march.cuh",
        "const bool exists = static_cast<unsigned>(flow_.row) < static_cast<unsigned>(frame_[1]);",
        "const bool exists = true;",
        "AddressSanitizer",
    ),
    "a ring too short": (
        "march.cuh",
        "if (to >= end) to -= s.ring;",
        "if (to >= end - s.row_pitch) to -= s.ring - s.row_pitch;",
        "a race",
    ),
    "a read behind the last unit": (
        "band_forward.cuh",
        "own.last_unit ? of_unit : 0",
        "of_unit",
        "a race",
    ),
    "results of the wrong step": (
        "march.cuh",
        "(step & 1) * s.next",
        "(~step & 1) * s.next",
        "a race",
    ),
}
FUSED_MISTAKES = {
    "fused, none": ("fused.cuh", "", "", "fused right, strided right"),
    "fused, rows before the barrier": (
        "fused_rows.cuh",
        "    meet();\n    bring(step);\n",
        "    bring(step);\n    meet();\n",
        "a race",
    ),
    "fused, no wait": (
        "fused_rows.cuh",
        "    commit_copies();\n    wait_for_copies<0>();\n",
        "    commit_copies();\n",
        "a race",
    ),
    "fused, no barrier of the warp": (
        "fused.cuh",
        "      __syncwarp();\n#pragma unroll\n",
        "#pragma unroll\n",
        "a race",
    ),
    "fused, columns outside": (
        "fused_rows.cuh",
        "const int end = smaller(width - first_column, wanted);",
        "const int end = wanted;",
        "AddressSanitizer",
    ),
    "fused, places of another position": (
        "fused.cuh",
        "fused_places(quad / 2)",
        "fused_places(quad)",
        "fused WRONG",
    ),
    "strided, a ring too short": (
        "fused_plan.h",
        "4 * kFusedTileRows + K - 1",
        "4 * kFusedTileRows + K - 3",
        "a race",
    ),
    "strided, rows of another lane": (
        "fused_strided.cuh",
        "upper ? first : second",
        "first",
        "strided WRONG",
    ),
}
BACKWARD_MISTAKES = {
    "backward, none": ("fused_rows.cuh", "", "", "input right, features right, weight right"),
    "input, no wait": (
        "fused_input_gradient.cuh",
        "    wait_for_copies<0>();\n    meet();",
        "    meet();",
        "a race",
    ),
    "features, no barrier": ("fused_features_gradient.cuh", "    meet();\n    if", "    if", "a race"),
    "weight, a ring too short": (
        "fused_backward_plan.h",
        "2 * (halo + kFusedTileRows), size",
        "halo + 2 * kFusedTileRows, size",
        "a race",
    ),
    "backward, rows outside": (
        "fused_rows.cuh",
        "row < static_cast<unsigned>(height) ? count_ : 0",
        "count_",
        "AddressSanitizer",
    ),
}


def run(name: str, program: str, mistake: tuple[str, ...], folder: Path, others: list[Path]) -> str:
    """Builds the program with one mistake, of it and the objects `others`, and runs it: what it prints."""
    file, right, wrong, _ = mistake
    sources = folder / "csrc"
    shutil.copytree(host_build.ROOT / "csrc" / "cuda", sources / "cuda")
    for header in (host_build.ROOT / "csrc").glob("*.h"):
        shutil.copy(header, sources)
    text = (sources / "cuda" / file).read_text()
    assert right == "" or text.count(right) == 1, f"{file} has {text.count(right)} times {right!r}"
    (sources / "cuda" / file).write_text(text.replace(right, wrong) if right else text)
    inputs = [host_build.HOST / program, *others]
    if program != "mistaken.cpp":  # a plan that lays a block out otherwise
        inputs += [sources / "cuda" / "fused_plan.cpp", sources / "cuda" / "fused_backward_plan.cpp"]
    include = [f"-I{host_build.HOST}", f"-I{sources}"]
    subprocess.run(
        ["g++", *host_build.FLAGS, *include, *map(str, inputs), "-o", str(folder / "mistaken")],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [folder / "mistaken"], env=host_build.environment(), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode == 0) == name.endswith("none"), f"{name}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("program", "mistakes"),
    [
        ("mistaken.cpp", MISTAKES),
        ("mistaken_fused.cpp", FUSED_MISTAKES),
        ("mistaken_backward.cpp", BACKWARD_MISTAKES),
    ],
    ids=["march", "fused", "backward"],
)
def test_every_mistake_is_caught(program: str, mistakes: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    folders = [tmp_path / str(index) for index in range(len(mistakes))]
    for folder in folders:
        folder.mkdir()
    others = host_build.objects(host_build.PLAN_SOURCES)  # no mistake is in there
    with ThreadPoolExecutor(2) as pool:
        arguments = (mistakes, repeat(program), mistakes.values(), folders, repeat(others))
        outputs = dict(zip(mistakes, pool.map(run, *arguments), strict=True))
    for name, (*_, expected) in mistakes.items():
        assert expected in outputs[name], f"{name}: {outputs[name][-2000:]}"
