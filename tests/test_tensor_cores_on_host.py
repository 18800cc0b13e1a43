"""ldmatrix and mma as the host executes them, against PTX's description of the fragments and a plain product."""

import subprocess
from pathlib import Path

import host_build
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)


@pytest.fixture(scope="module")
def program() -> Path:
    return host_build.build("tensor_cores", [host_build.HOST / "tensor_cores.cpp"])


def values(program: Path, *arguments: object) -> np.ndarray:
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(
        command, env=host_build.environment(), capture_output=True, text=True, timeout=60, check=True
    )
    return np.array([float(line) for line in done.stdout.split()])


@pytest.mark.parametrize("matrices", [2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_lane_gets_its_part_of_a_matrix(program: Path, matrices: int, transposed: bool) -> None:
    got = values(program, "ldmatrix", matrices, int(transposed)).reshape(32, matrices, 2)
    for lane in range(32):
        for matrix in range(matrices):
            for half in range(2):
                row, column = lane // 4, 2 * (lane % 4) + half
                if transposed:
                    row, column = column, row
                assert got[lane, matrix, half] == 64 * matrix + 8 * row + column


def test_rows_and_columns_are_exchanged(program: Path) -> None:
    got = values(program, "movmatrix", "-", "-").reshape(32, 2)
    for lane in range(32):
        for half in range(2):
            row, column = lane // 4, 2 * (lane % 4) + half  # of what is given
            assert got[lane, half] == 8 * column + row


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("fragments", ["mma", "loaded_mma"])
def test_product_is_the_plain_one(program: Path, fragments: str, dtype: str, depth: int) -> None:
    i, j, k = np.arange(16), np.arange(8), np.arange(depth)
    a = (5 * i[:, None] + 3 * k[None]) % 13 - 6
    b = (7 * k[:, None] + j[None]) % 11 - 5
    expected = a @ b
    got = values(program, fragments, depth, dtype).reshape(32, 4)
    for lane in range(32):
        for index in range(4):
            row, column = lane // 4 + 8 * (index // 2), 2 * (lane % 4) + index % 2
            assert got[lane, index] == expected[row, column]
