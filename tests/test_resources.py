"""No kernel spills registers, and the loops at K = 7 are mostly arithmetic; needs nvcc, and no GPU."""

from pathlib import Path

import pytest

from benchmarks import disassembly, resources, sass

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
def test_machine_code(architecture: str, tmp_path: Path) -> None:
    by_file = resources.all_resources(NVCC or "", architecture, tmp_path)
    table = [row for rows in by_file.values() for row in rows]
    # 4 dtypes x (3 generic + 4 widths x (2 strides x (involution, correlation) + transposed)), and for two of
    # them 3 widths x 2 formats x (involution, transposed, correlation of 16 channels and of more) on tensor cores
    assert len(table) == 4 * (3 + 4 * 5) + 2 * 3 * 2 * 4
    assert not [row for row in table if not row.clean]
    try:
        disassembler = disassembly.find_disassembler()
    except disassembly.NoDisassemblerError as error:
        pytest.skip(f"no kernel spills, but its instructions cannot be read: {error}")
    reports = {
        report.kernel: report
        for cubin, rows in by_file.items()
        if cubin.stem in ("kernels_float32", "kernels_bfloat16")
        for report in sass.analyse_cubin(rows, disassembler, cubin, architecture)
    }
    for mirrored in ("false", "true"):
        kernel = f"gather_tile_kernel<float, 7, 1, {mirrored}>"
        # The loop of whole lanes, which 16 channels a group are; the other copy has tests in between.
        assert reports[kernel].fma_share >= 0.8 > max(reports[kernel].other_shares)
    assert reports["correlation_tile_kernel<float, 7, 1>"].fma_share >= 0.8
    banded = [r for r in reports.values() if r.kernel.startswith("banded_") and r.instructions_per_tile]
    assert len(banded) == 2 * 4
    assert max(report.instructions_per_tile for report in banded) <= 260
