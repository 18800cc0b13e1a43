"""No kernel for 7x7 windows spills registers; needs nvcc, and no GPU."""

from pathlib import Path

import pytest

from benchmarks import resources

NVCC = resources.find_nvcc()

REPORT = """\
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_90'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90'
ptxas info    : Function properties for _Z3badPf
    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 16 bytes cumulative stack size
"""


def test_the_compilers_report_is_understood() -> None:
    good, bad = resources.parse(REPORT)
    assert (good.registers, good.clean) == (40, True)
    assert (bad.stack_frame, bad.spill_stores, bad.spill_loads, bad.clean) == (16, 20, 24, False)


# A block of 640 threads leaves each 96 registers. Of the transposed operation, whose sums take most of them, the
# compiler keeps a few values in memory and reads each back once a step, outside of the loops over the rows and the
# kernel.
@pytest.mark.skipif(NVCC is None, reason="no nvcc (CUDA toolkit) to compile the kernels with")
@pytest.mark.parametrize(("architecture", "spilled_by_transposes"), [("sm_80", 48), ("sm_90", 16)])
def test_the_main_kernels_do_not_spill(architecture: str, spilled_by_transposes: int, tmp_path: Path) -> None:
    table = resources.main_resources(NVCC or "", architecture, tmp_path)
    # 3 operations x 2 strides x (float32, and bfloat16 in 2 formats)
    assert len(table) == 3 * 2 * (1 + 2)
    transposes = [row for row in table if "(Operation)1" in row.kernel]
    assert len(transposes) == 2 * (1 + 2)
    assert max(row.spill_stores + row.spill_loads for row in transposes) <= spilled_by_transposes
    assert not [row for row in table if not row.clean and row not in transposes]
    # What a block of the largest size leaves each thread.
    band = [row.registers for row in table if row.kernel.startswith("band_kernel")]
    assert len(band) == 12 and max(band) <= 65536 // 640 // 8 * 8
