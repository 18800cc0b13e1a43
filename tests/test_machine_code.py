"""The kernels' machine code, counted and executed; needs nvcc and cuobjdump, and no GPU."""

import itertools
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from machine_execution import ExecutionError, execute
from torch import Tensor

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
    counted = machine_code.count(
        kernel, machine_code.constants(kernel, numbers, 64, (3, 1, 1)), 64, (2, 0, 0)
    )

    rounds = [max(0, int((thread * factor - 50) / divisor)) for thread in range(40)]
    stores = 2  # of two warps at the end
    for lanes in (rounds[:32], rounds[32:]):  # a store that no lane wants is issued, too
        stores += 2 * max(lanes)
    assert counted.by_name["STG"] == stores
    assert len(counted.of_warps) == 2


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], instructions.Counter]:
    """The kernels for an architecture."""

    @cache
    def compiled_for(architecture: str) -> instructions.Counter:
        folder = tmp_path_factory.mktemp(architecture)
        return instructions.Counter(NVCC or "", CUOBJDUMP or "", folder, architecture)

    return compiled_for


@pytest.fixture
def counter(compiled: Callable[[str], instructions.Counter]) -> instructions.Counter:
    return compiled("sm_90")


FIRST, LAST, STRIDED = (64, 56, 1), (512, 7, 1), (128, 56, 2)
INVOLUTION, TRANSPOSE, CORRELATION = instructions.MARCHING
INPUT_GRADIENT, FEATURES_GRADIENT, WEIGHT_GRADIENT = instructions.GRADIENTS


# A position and group of RedNet's first and last shape, and of one with a stride; a twentieth more than there are.
@pytest.mark.parametrize(
    ("launch", "most", "wavefronts"),
    [
        (instructions.Launch(INVOLUTION, True, True, *FIRST), 17.7, 9.2),
        (instructions.Launch(INVOLUTION, True, True, *LAST), 32, 9),
        (instructions.Launch(INVOLUTION, True, True, *STRIDED), 35, 11.2),
        (instructions.Launch(TRANSPOSE, True, True, *FIRST), 22, 7.7),
        (instructions.Launch(TRANSPOSE, True, True, *LAST), 37, 6.5),
        (instructions.Launch(TRANSPOSE, True, True, *STRIDED), 38, 12.2),
        (instructions.Launch(CORRELATION, True, True, *FIRST), 20, 7.3),
        (instructions.Launch(CORRELATION, True, True, *LAST), 33, 9),
        (instructions.Launch(INVOLUTION, True, False, *FIRST), 24, 7.8),
        (instructions.Launch(TRANSPOSE, True, False, *FIRST), 23, 9.1),
        (instructions.Launch(CORRELATION, True, False, *FIRST), 24, 7.8),
        (instructions.Launch(INVOLUTION, False, True, *FIRST), 53, 17.1),
        (instructions.Launch(TRANSPOSE, False, True, *FIRST), 61, 17),
        (instructions.Launch(CORRELATION, False, True, *FIRST), 55, 16.5),
        (instructions.Launch(INVOLUTION, False, False, *FIRST), 60, 19.9),
        (instructions.Launch(CORRELATION, False, False, *FIRST), 63.5, 21),
        (instructions.Launch(CORRELATION, False, False, *STRIDED), 96.5, 37.7),
        (instructions.Launch(instructions.FUSED, True, True, *FIRST), 12.6, 4.1),
        (instructions.Launch(instructions.FUSED, True, True, *LAST), 35.6, 16.4),
        (instructions.Launch(instructions.FUSED, True, True, *STRIDED), 27, 12.6),
        (instructions.Launch(INPUT_GRADIENT, True, True, *FIRST), 19, 11.1),
        (instructions.Launch(FEATURES_GRADIENT, True, True, *FIRST), 25.5, 5),
        (instructions.Launch(WEIGHT_GRADIENT, True, True, *FIRST), 14, 4.3),
    ],
    ids=lambda value: value.name if isinstance(value, instructions.Launch) else None,
)
def test_a_position_takes_few_instructions(
    counter: instructions.Counter, launch: instructions.Launch, most: float, wavefronts: float
) -> None:
    row = counter.count(launch)
    assert row.per_position <= most, row
    assert row.wavefronts <= wavefronts, row
    # What passes before the first step can be computed.
    assert max(row.count.until_first_barrier) <= 1600, row


# Words of a bank are served one after another, 8 and 16 bytes in halves and quarters of a warp.
ACCESSES = """\
extern "C" __global__ void accesses(const __grid_constant__ int step, float* out) {
  __shared__ __align__(16) float numbers[2048];
  numbers[threadIdx.x * step] = 1.f;
  __syncthreads();
  const float4 four = *reinterpret_cast<const float4*>(&numbers[threadIdx.x * 4]);
  out[threadIdx.x * step] = four.x + four.y + four.z + four.w;
}
"""


@pytest.mark.parametrize(
    ("step", "stores", "sectors"), [(1, 1, 4), (2, 2, 8), (8, 8, 32), (33, 1, 32), (32, 32, 32)]
)
def test_wavefronts_and_sectors_are_counted(step: int, stores: int, sectors: int, tmp_path: Path) -> None:
    (tmp_path / "accesses.cu").write_text(ACCESSES)
    resources.compile_cubin(NVCC or "", tmp_path / "accesses.cu", "sm_90", tmp_path / "accesses.cubin")
    kernel = machine_code.read_kernels(tmp_path / "accesses.cubin", CUOBJDUMP or "")["accesses"]
    bank = machine_code.constants(kernel, step.to_bytes(4, "little"), 32, (1, 1, 1))
    counted = machine_code.count(kernel, bank, 32, (0, 0, 0))
    assert (counted.wavefronts, counted.sectors) == (stores + 4, sectors)


def raw(tensor: Tensor | None) -> np.ndarray | None:
    """The tensor's bytes, as they lie."""
    return None if tensor is None else tensor.contiguous().reshape(-1).view(torch.uint8).numpy().copy()


def random_tensor(seed: int, *sizes: int) -> Tensor:
    return torch.rand(sizes, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def run(
    counter: instructions.Counter,
    launch: instructions.Launch,
    operands: Sequence[Tensor | None],
    result: Tensor,
) -> Tensor:
    """Executes the launch and returns what is in ``result``'s place."""
    plan = counter.plan(launch)
    x, y, z = map(int, plan["grid"].split())
    tensors = [*map(raw, operands), raw(torch.full_like(result, torch.nan))]
    kernel, march = counter.kernels[launch.kernel(plan)], bytes.fromhex(plan["march"])
    execute(kernel, march, tensors, int(plan["threads"]), int(plan["shared_bytes"]), (x, y, z), seed=1)
    return torch.from_numpy(tensors[-1]).view(result.dtype).view(result.shape)


def check(result: Tensor, exact: np.ndarray, magnitude: np.ndarray, roundings: float = 0) -> None:
    """Within half a unit of the result and so many halves of its terms, and the errors of sums in float32."""
    half_unit = torch.finfo(result.dtype).eps / 2
    bound = half_unit * (abs(exact) + roundings * magnitude) * 1.01 + 60 * 2.0**-24 * magnitude
    error = abs(result.double().numpy() - exact)
    assert (error <= bound).all(), f"{(error / bound).max():.3g} of the bound"


# Compute capability 8.0 has forms of its own for half types alone.
ARCHITECTURES = pytest.mark.parametrize("architecture", ["sm_90", "sm_80"])
MARCHING = [
    (architecture, instructions.Launch(operation, half, channels_last, 32, 9, stride, batch=1))
    for architecture, operation, half, channels_last, stride in itertools.product(
        ("sm_90", "sm_80"), instructions.MARCHING, (True, False), (True, False), (1, 2)
    )
    if half or architecture == "sm_90"
]


@pytest.mark.parametrize(
    ("architecture", "launch"), MARCHING, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_marching_kernels_execute(
    compiled: Callable[[str], instructions.Counter], architecture: str, launch: instructions.Launch
) -> None:
    dtype, width = torch.bfloat16 if launch.half else torch.float32, launch.width
    groups, out = launch.channels // 16, (width - 1) // launch.stride + 1
    x = random_tensor(1, launch.batch, launch.channels, width, width).to(dtype)
    w = random_tensor(2, launch.batch, groups, 7, 7, out, out).to(dtype)
    y = random_tensor(3, launch.batch, launch.channels, out, out).to(dtype)
    window = ((launch.stride,) * 2, (3, 3), (1, 1))
    a, b, c = (tensor.double().numpy() for tensor in (x, w, y))
    exact, magnitude = (
        {
            INVOLUTION: lambda a, b, c: oracle.involution(a, b, *window),
            TRANSPOSE: lambda a, b, c: oracle.involution_transpose(c, b, (width, width), *window),
            CORRELATION: lambda a, b, c: oracle.local_correlation(c, a, (7, 7), groups, *window),
        }[launch.operation],
        None,
    )
    exact, magnitude = exact(a, b, c), exact(abs(a), abs(b), abs(c))

    def stored(tensor: Tensor) -> Tensor:
        if not launch.channels_last:
            return tensor
        return tensor.permute(0, 4, 5, 1, 2, 3) if tensor.dim() == 6 else tensor.permute(0, 2, 3, 1)

    source, second, result = {INVOLUTION: (x, w, y), TRANSPOSE: (y, w, x), CORRELATION: (x, y, w)}[
        launch.operation
    ]
    found = run(compiled(architecture), launch, [stored(source), stored(second)], stored(result).contiguous())
    if launch.channels_last:
        found = found.permute(0, 3, 4, 5, 1, 2) if found.dim() == 6 else found.permute(0, 3, 1, 2)
    check(found, exact, magnitude)


class FusedLayer:
    """Operands of a fused layer with 7x7 kernels, channels last, and what is made of them in float64."""

    def __init__(self, launch: instructions.Launch) -> None:
        channels, width, stride = launch.channels, launch.width, launch.stride
        self.groups, self.reduced = channels // 16, channels // 4
        self.map = (launch.batch, (width - 1) // stride + 1, (width - 1) // stride + 1)
        points = self.groups * 49
        self.x = random_tensor(1, launch.batch, width, width, channels).bfloat16()
        self.features = random_tensor(2, *self.map, self.reduced).bfloat16()
        self.weight = (random_tensor(3, points, self.reduced) * 2 / self.reduced**0.5).bfloat16()
        self.bias = random_tensor(4, points).bfloat16()
        self.dy = random_tensor(5, *self.map, channels).bfloat16()
        self.scale, self.shift = random_tensor(6, channels), random_tensor(7, channels)
        features, weight, bias = (t.double().numpy() for t in (self.features, self.weight, self.bias))
        self.kernels = features @ weight.T + bias
        self.window = ((stride,) * 2, (3, 3), (1, 1))

    def first(self, tensor: Tensor | np.ndarray) -> np.ndarray:
        """Channels first, in float64."""
        array = tensor.double().numpy() if isinstance(tensor, Tensor) else tensor
        return array.transpose(0, 3, 1, 2)

    def by_group(self, kernels: np.ndarray) -> np.ndarray:
        return self.first(kernels).reshape(self.map[0], self.groups, 7, 7, *self.map[1:])


@ARCHITECTURES
@pytest.mark.parametrize(
    ("channels", "width", "stride"),
    [(64, 9, 1), (128, 9, 1), (256, 6, 1), (512, 5, 1), (128, 9, 2), (256, 8, 2), (512, 5, 2)],
)
def test_fused_kernels_execute(
    compiled: Callable[[str], instructions.Counter], architecture: str, channels: int, width: int, stride: int
) -> None:
    check_fused_kernel(compiled(architecture), channels, width, stride)


def check_fused_kernel(counter: instructions.Counter, channels: int, width: int, stride: int) -> None:
    launch = instructions.Launch(instructions.FUSED, True, True, channels, width, stride, batch=1)
    of = FusedLayer(launch)
    kernels = of.by_group(of.kernels)
    exact = oracle.involution(of.first(of.x), kernels, *of.window)
    magnitude = oracle.involution(abs(of.first(of.x)), abs(kernels), *of.window)
    scale, shift = (tensor.double().numpy()[:, None, None] for tensor in (of.scale, of.shift))
    operands = [of.x, of.features, of.weight, of.bias, of.scale, of.shift]
    found = run(counter, launch, operands, torch.empty(*of.map, channels, dtype=torch.bfloat16))
    check(found.permute(0, 3, 1, 2), exact * scale + shift, magnitude * abs(scale) + abs(shift), roundings=1)


@ARCHITECTURES
@pytest.mark.parametrize(("channels", "width"), [(64, 9), (128, 5), (256, 5)])
@pytest.mark.parametrize("gradient", instructions.GRADIENTS)
def test_fused_gradients_execute(
    compiled: Callable[[str], instructions.Counter],
    architecture: str,
    gradient: str,
    channels: int,
    width: int,
) -> None:
    counter = compiled(architecture)
    launch = instructions.Launch(gradient, True, True, channels, width, 1, batch=2 if channels == 64 else 1)
    of = FusedLayer(launch)

    def kernel_gradient(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        found = oracle.local_correlation(dy, x, (7, 7), of.groups, *of.window)
        return found.reshape(of.map[0], -1, *of.map[1:]).transpose(0, 2, 3, 1)

    x, dy, kernels = of.first(of.x), of.first(of.dy), of.by_group(of.kernels)
    dk, dk_magnitude = kernel_gradient(dy, x), kernel_gradient(abs(dy), abs(x))
    features, weight = of.features.double().numpy(), of.weight.double().numpy()
    if gradient == INPUT_GRADIENT:
        found = run(counter, launch, [of.dy, of.features, of.weight, of.bias], torch.empty_like(of.x))
        size = (width, width)
        exact = oracle.involution_transpose(dy, kernels, size, *of.window)
        magnitude = oracle.involution_transpose(abs(dy), abs(kernels), size, *of.window)
        return check(found.permute(0, 3, 1, 2), exact, magnitude, roundings=1)
    if gradient == FEATURES_GRADIENT:
        found = run(counter, launch, [of.dy, of.x, of.weight], torch.empty_like(of.features))
        return check(found, dk @ weight, dk_magnitude @ abs(weight), roundings=1)
    parts = int(counter.plan(launch)["parts"])
    found = run(
        counter, launch, [of.dy, of.x, of.features], torch.empty(parts, of.groups * 49, of.reduced + 1)
    )
    exact = np.concatenate([np.einsum("bhwp,bhwr->pr", dk, features), dk.sum((0, 1, 2))[:, None]], 1)
    magnitude = [
        np.einsum("bhwp,bhwr->pr", dk_magnitude, abs(features)),
        dk_magnitude.sum((0, 1, 2))[:, None],
    ]
    # In float32, of kernels' gradients that are rounded to bfloat16.
    check(found.double().sum(0).float(), exact, np.concatenate(magnitude, 1), roundings=2.0**16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("BAR", "what is being written|what is in use"),
        ("DEPBAR", "what is being written|what is in use"),
        ("HMMA", "of the bound"),
    ],
)
def test_mistakes_are_found(counter: instructions.Counter, change: str, message: str) -> None:
    """Without its barriers, its waits for copies or a product a kernel is wrong."""
    launch = instructions.Launch(instructions.FUSED, True, True, 64, 9, 1, batch=1)
    name = launch.kernel(counter.plan(launch))
    kernel = counter.kernels[name]
    places = [k for k, instruction in enumerate(kernel.instructions) if instruction.name == change]
    left_out = places if change != "HMMA" else places[:1]
    mistaken = [
        replace(i, opcode=("NOP",)) if k in left_out else i for k, i in enumerate(kernel.instructions)
    ]
    broken = copy(counter)
    broken.kernels = counter.kernels | {name: replace(kernel, instructions=mistaken)}
    with pytest.raises((ExecutionError, AssertionError), match=message):
        check_fused_kernel(broken, 64, 9, 1)
