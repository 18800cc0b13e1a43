"""What the kernels execute, counted from their machine code; needs nvcc and cuobjdump, and no GPU."""

from pathlib import Path

import pytest

from benchmarks import instructions, machine_code, resources

NVCC, CUOBJDUMP = resources.find_nvcc(), instructions.find_cuobjdump()
# The counts, and which instructions there are, are a compiler's.
pytestmark = pytest.mark.skipif(
    NVCC is None or CUOBJDUMP is None or not resources.version(NVCC).startswith("13.0"),
    reason="no nvcc 13.0 with cuobjdump (CUDA toolkit) to compile the kernels with",
)

# Lanes part and meet again, some leave, and numbers are divided.
PROGRAM = """\
struct Numbers { int factor; int divisor; };
extern "C" __global__ void loops(const __grid_constant__ Numbers n, volatile int* out) {
  const int thread = threadIdx.x;
  if (thread >= 40) return;
  const int rounds = (thread * n.factor - 50) / n.divisor;
#pragma unroll 1
  for (int i = 0; i < rounds; ++i) {
    out[i] = thread;
    if (thread % 2 == 0) out[i + 1000 * blockIdx.x] = i;
  }
  out[thread] = rounds;
}
"""


@pytest.mark.parametrize(("factor", "divisor"), [(1, 1), (7, 3), (-5, -2), (3, 17)])
def test_loops_are_counted(factor: int, divisor: int, tmp_path: Path) -> None:
    (tmp_path / "loops.cu").write_text(PROGRAM)
    resources.compile_cubin(NVCC or "", tmp_path / "loops.cu", "sm_90", tmp_path / "loops.cubin")
    kernel = machine_code.read_kernels(tmp_path / "loops.cubin", CUOBJDUMP or "")["loops"]
    numbers = b"".join(value.to_bytes(4, "little", signed=True) for value in (factor, divisor))
    counted = machine_code.count(kernel, machine_code.constants(numbers, 64, (3, 1, 1)), 64, (2, 0, 0))

    rounds = [max(0, int((thread * factor - 50) / divisor)) for thread in range(40)]
    stores = 2  # of two warps at the end
    for lanes in (rounds[:32], rounds[32:]):  # a store that no lane wants is issued, too
        stores += 2 * max(lanes)
    assert counted.by_name["STG"] == stores
    assert len(counted.of_warps) == 2


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> instructions.Counter:
    return instructions.Counter(NVCC or "", CUOBJDUMP or "", tmp_path_factory.mktemp("counter"))


FIRST, LAST, STRIDED = (64, 56, 1), (512, 7, 1), (128, 56, 2)
INVOLUTION, TRANSPOSE, CORRELATION = instructions.MARCHING
INPUT_GRADIENT, FEATURES_GRADIENT, WEIGHT_GRADIENT = instructions.GRADIENTS


# A position and group of RedNet's first and last shape, and of one with a stride; a twentieth more than there are.
@pytest.mark.parametrize(
    ("launch", "most"),
    [
        (instructions.Launch(INVOLUTION, True, True, *FIRST), 17.7),
        (instructions.Launch(INVOLUTION, True, True, *LAST), 32),
        (instructions.Launch(INVOLUTION, True, True, *STRIDED), 35),
        (instructions.Launch(TRANSPOSE, True, True, *FIRST), 22),
        (instructions.Launch(TRANSPOSE, True, True, *LAST), 37),
        (instructions.Launch(TRANSPOSE, True, True, *STRIDED), 38),
        (instructions.Launch(CORRELATION, True, True, *FIRST), 20),
        (instructions.Launch(CORRELATION, True, True, *LAST), 33),
        (instructions.Launch(INVOLUTION, True, False, *FIRST), 24),
        (instructions.Launch(TRANSPOSE, True, False, *FIRST), 23),
        (instructions.Launch(CORRELATION, True, False, *FIRST), 24),
        (instructions.Launch(INVOLUTION, False, True, *FIRST), 53),
        (instructions.Launch(TRANSPOSE, False, True, *FIRST), 61),
        (instructions.Launch(CORRELATION, False, True, *FIRST), 55),
        (instructions.Launch(INVOLUTION, False, False, *FIRST), 60),
        (instructions.Launch(instructions.FUSED, True, True, *FIRST), 13),
        (instructions.Launch(instructions.FUSED, True, True, *LAST), 36),
        (instructions.Launch(instructions.FUSED, True, True, *STRIDED), 27),
        (instructions.Launch(INPUT_GRADIENT, True, True, *FIRST), 19),
        (instructions.Launch(FEATURES_GRADIENT, True, True, *FIRST), 25.5),
        (instructions.Launch(WEIGHT_GRADIENT, True, True, *FIRST), 14),
    ],
    ids=lambda value: value.name if isinstance(value, instructions.Launch) else None,
)
def test_a_position_takes_few_instructions(
    counter: instructions.Counter, launch: instructions.Launch, most: float
) -> None:
    row = counter.count(launch)
    assert row.per_position <= most, row
    # What passes before the first step can be computed.
    assert max(row.count.until_first_barrier) <= 1600, row
