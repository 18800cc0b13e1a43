"""No kernel spills registers or has a stack frame; needs nvcc, and no GPU."""

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


@pytest.mark.skipif(NVCC is None, reason="no nvcc (CUDA toolkit) to compile the kernels with")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_kernel_spills(architecture: str) -> None:
    table = resources.all_resources(NVCC or "", architecture)
    # 4 dtypes x (3 generic + 4 widths x (2 strides x (involution, correlation) + transposed)), and for two of
    # them 3 widths x 2 formats x (involution, transposed, correlation of 16 channels and of more) on tensor cores
    assert len(table) == 4 * (3 + 4 * 5) + 2 * 3 * 2 * 4
    assert not [row for row in table if not row.clean]
