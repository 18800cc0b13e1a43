"""BlockAverage against torch's average pooling with ceil_mode, eagerly, exported and traced."""

import pytest
import torch

from involution.export import export_program
from involution.layers.pooling import BlockAverage

POOLS = (torch.nn.AvgPool1d, torch.nn.AvgPool2d, torch.nn.AvgPool3d)
CASES = {  # the block, and an example's size that it divides
    "1d": ((3,), (9,)),
    "2d": ((2, 3), (8, 9)),
    "3d": ((2, 1, 3), (4, 4, 6)),
}
EACH_CASE = pytest.mark.parametrize("name", CASES)


def pooled(x: torch.Tensor, block: tuple[int, ...]) -> torch.Tensor:
    pool = POOLS[len(block) - 1](block, block, ceil_mode=True, count_include_pad=False)
    return pool(x.double()).to(x.dtype)


@EACH_CASE
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("more", [0, 1, 2])
def test_any_size_and_dtype(name: str, dtype: torch.dtype, more: int) -> None:
    block, size = CASES[name]
    x = torch.randn(2, 3, *(length + more for length in size)).to(dtype)
    result = BlockAverage(block)(x)
    assert result.dtype == dtype
    torch.testing.assert_close(result, pooled(x, block))


def test_a_map_smaller_than_the_block() -> None:
    x = torch.randn(1, 2, 1, 2)
    torch.testing.assert_close(BlockAverage((2, 3))(x), x.mean((2, 3), keepdim=True))


def test_channels_last_is_kept() -> None:
    x = torch.randn(2, 4, 5, 7).to(memory_format=torch.channels_last)
    assert BlockAverage((2, 2))(x).is_contiguous(memory_format=torch.channels_last)


@EACH_CASE
def test_programs_and_traces_of_one_size_hold_for_others(name: str) -> None:
    """Made with a size that the block divides, for sizes that it does not."""
    block, size = CASES[name]
    pool = BlockAverage(block).eval()
    example = torch.randn(2, 3, *size)
    program = export_program(pool, (example,))
    assert not any(True in node.args for node in program.graph.nodes if "pool" in str(node.target))
    for run in (program.module(), torch.jit.trace(pool, example)):
        for more in (0, 1, 2):
            x = torch.randn(3, 3, *(length + more for length in size))
            torch.testing.assert_close(run(x), pooled(x, block))
