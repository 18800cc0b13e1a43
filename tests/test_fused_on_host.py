"""The shipped kernels of the fused layer, executed on the host under sanitizers, against float64: all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import host_build
import numpy as np
import pytest
import torch
from host_runner import DeviceLimits, FusedRunner
from torch import Tensor

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

HALF_DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
GROUP = 16
# An H200; one on which a block marches down all rows; one with little shared memory, for narrow strips, which has no
# room for 128 reduced channels.
GPUS = (DeviceLimits(), DeviceLimits(227 * 1024, 228 * 1024, 1), DeviceLimits(99 * 1024, 100 * 1024, 4))


@dataclass(frozen=True)
class Layer:
    """One call: sizes, and what takes part."""

    batch: int
    groups: int
    reduced: int
    height: int
    width: int
    kernel: int
    dtype: torch.dtype
    stride: int = 1
    bias: bool = True
    scale: bool = False
    relu: bool = False

    @property
    def space(self) -> tuple[int, int, int]:
        """The batch, and the frame of the result."""
        return (self.batch, -(-self.height // self.stride), -(-self.width // self.stride))

    def operands(self, seed: int) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(seed)

        def random_tensor(*sizes: int) -> Tensor:
            return torch.rand(sizes, generator=generator) * 2 - 1

        channels, points = self.groups * GROUP, self.groups * self.kernel**2
        return {
            "x": random_tensor(self.batch, self.height, self.width, channels).to(self.dtype),
            "features": random_tensor(*self.space, self.reduced).to(self.dtype),
            "weight": (random_tensor(points, self.reduced) * 2 / self.reduced**0.5).to(self.dtype),
            "bias": random_tensor(points).to(self.dtype) if self.bias else None,
            "scale": random_tensor(channels) if self.scale else None,
            "shift": random_tensor(channels) if self.scale else None,
        }


@pytest.fixture(scope="module")
def runner() -> Iterator[FusedRunner]:
    with FusedRunner() as runner:
        yield runner


def kernels(layer: Layer, features: Tensor, weight: Tensor, bias: Tensor | None, rounded: bool) -> np.ndarray:
    """(B, H, W, G, K, K) in float64: exact, or summed in float32 in the kernel's order and rounded to the dtype."""
    h, w = features.double().numpy(), weight.double().numpy()
    b = np.zeros(len(w)) if bias is None else bias.double().numpy()
    if rounded:
        total = np.broadcast_to(b.astype(np.float32), (*h.shape[:3], len(w))).copy()
        for r in range(layer.reduced):
            total += h[..., r : r + 1].astype(np.float32) * w[:, r].astype(np.float32)
        made = torch.from_numpy(total).to(layer.dtype).double().numpy()
    else:
        made = h @ w.T + b
    return made.reshape(*h.shape[:3], layer.groups, layer.kernel, layer.kernel)


def involved(layer: Layer, x: Tensor, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The involution in float64, and the sum of its terms' magnitudes."""
    reach = layer.kernel // 2
    padded = np.pad(x.double().numpy(), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    total = np.zeros((*layer.space, x.shape[-1]))
    magnitude = np.zeros_like(total)
    for kh, kw in np.ndindex(layer.kernel, layer.kernel):
        window = padded[:, kh : kh + layer.height : layer.stride, kw : kw + layer.width : layer.stride]
        term = window * np.repeat(made[..., kh, kw], GROUP, axis=-1)
        total += term
        magnitude += abs(term)
    return total, magnitude


def expected(
    layer: Layer, operands: dict[str, Tensor | None], rounded: bool
) -> tuple[np.ndarray, np.ndarray]:
    made = kernels(layer, operands["features"], operands["weight"], operands["bias"], rounded)
    y, magnitude = involved(layer, operands["x"], made)
    if layer.scale:
        scale, shift = operands["scale"].double().numpy(), operands["shift"].double().numpy()
        y, magnitude = y * scale + shift, magnitude * abs(scale) + abs(shift)
    return (np.maximum(y, 0) if layer.relu else y), magnitude


def check(runner: FusedRunner, layer: Layer, seed: int = 0, limits: DeviceLimits = GPUS[0]) -> str:
    """Runs the layer in two orders of threads, compares, and returns the plan."""
    operands = layer.operands(seed)
    options = {"kernel_size": layer.kernel, "stride": layer.stride, "relu": layer.relu, "limits": limits}
    result, plan = runner.run_fused(**operands, **options, seed=2 * seed + 1)
    assert plan.startswith("fused "), plan
    again, _ = runner.run_fused(**operands, **options, seed=2 * seed + 2)
    assert torch.equal(result, again), f"the result depends on the order of threads; plan: {plan}"

    # Against the kernels as they are rounded: the rounding of y, half a unit, and that of sums in float32.
    eps = torch.finfo(layer.dtype).eps
    y, magnitude = expected(layer, operands, rounded=True)
    error = abs(result.double().numpy() - y)
    bound = (
        0.5 * eps * abs(y) * (1 + eps) + 60 * 2.0**-24 * magnitude + torch.finfo(layer.dtype).smallest_normal
    )
    assert (error <= bound).all(), f"{layer}: off by {(error / bound).max():.3g} of the bound; plan: {plan}"
    # Against exact kernels: each of them is off by half a unit as well.
    y, magnitude = expected(layer, operands, rounded=False)
    error = abs(result.double().numpy() - y)
    assert (error <= 0.5 * eps * (abs(y) + magnitude) * 1.01 + 1e-6).all(), layer
    return plan


@HALF_DTYPES
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("reduced", [8, 16, 24, 56, 96, 128])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_kernel(
    runner: FusedRunner, stride: int, kernel: int, reduced: int, dtype: torch.dtype
) -> None:
    rng = random.Random(f"{kernel} {reduced}")
    for seed in range(2):
        layer = Layer(
            batch=rng.choice((1, 2)),
            groups=rng.choice((1, 2, 3, 4, 5, 6)),
            reduced=reduced,
            height=rng.randint(1, 13 * stride),
            width=rng.choice((1, 3, 7, 8, 9, 14, 17, 29)) * stride - rng.choice((0, stride - 1)),
            kernel=kernel,
            dtype=dtype,
            stride=stride,
            bias=rng.random() < 0.7,
            scale=rng.random() < 0.5,
            relu=rng.random() < 0.5,
        )
        check(runner, layer, seed, rng.choice(GPUS if reduced <= 64 or stride == 2 else GPUS[:2]))


@pytest.mark.parametrize("limits", GPUS[:2], ids=["H200", "one multiprocessor"])
@pytest.mark.parametrize(
    ("groups", "reduced", "size", "kernel", "stride"),
    [
        (4, 16, 28, 7, 1),
        (8, 32, 14, 7, 1),
        (4, 64, 14, 7, 1),
        (4, 128, 7, 7, 1),
        (2, 8, 28, 3, 1),
        (2, 32, 28, 7, 2),
        (2, 64, 28, 7, 2),
        (2, 128, 14, 7, 2),
    ],
)
def test_rednet_layers(
    runner: FusedRunner,
    groups: int,
    reduced: int,
    size: int,
    kernel: int,
    stride: int,
    limits: DeviceLimits,
) -> None:
    """Of RedNet-50's widths, on parts of their maps; as trained, and with the norm and activation behind them."""
    layer = Layer(1, groups, reduced, size, size, kernel, torch.bfloat16, stride)
    check(runner, layer, 0, limits)
    check(runner, replace(layer, scale=True, relu=True), 1, limits)


def test_a_block_marches_down_a_long_strip(runner: FusedRunner) -> None:
    """Both rings turn several times."""
    plan = check(runner, Layer(6, 4, 16, 61, 5, 7, torch.bfloat16), limits=GPUS[1])
    assert "1 chunks of 64 rows" in plan
    assert "1 chunks" not in check(runner, Layer(1, 4, 16, 61, 5, 7, torch.bfloat16))
    plan = check(runner, Layer(6, 2, 32, 91, 9, 7, torch.bfloat16, stride=2), limits=GPUS[1])
    assert "1 chunks of 48 rows" in plan


@pytest.mark.parametrize(
    ("changes", "stride", "groups", "reason"),
    [
        ({"kernel": 9}, 1, None, "not 3x3, 5x5 or 7x7"),
        ({"kernel": 4}, 1, None, "not 3x3, 5x5 or 7x7"),
        ({}, 3, None, "the stride is not 1 or 2"),
        ({"reduced": 12}, 1, None, "not a multiple of 8"),
        ({"reduced": 136}, 1, None, "up to 128"),
        ({}, 1, 1, "does not have 16 channels"),
    ],
)
def test_what_has_no_kernel(
    runner: FusedRunner, changes: dict[str, int], stride: int, groups: int | None, reason: str
) -> None:
    layer = replace(Layer(1, 2, 16, 5, 6, 3, torch.bfloat16), **changes)
    _, plan = runner.run_fused(**layer.operands(0), kernel_size=layer.kernel, stride=stride, groups=groups)
    assert plan.startswith("not fused: ") and reason in plan, plan


def test_a_device_without_room_has_no_plan(runner: FusedRunner) -> None:
    layer = Layer(1, 4, 128, 5, 6, 7, torch.bfloat16)
    limits = DeviceLimits(48 * 1024, 100 * 1024, 4)
    _, plan = runner.run_fused(**layer.operands(0), kernel_size=7, limits=limits)
    assert plan == "not fused: no block fits into shared memory"


@HALF_DTYPES
def test_no_nan_is_lost_and_none_goes_far(runner: FusedRunner, dtype: torch.dtype) -> None:
    """A NaN of x reaches the positions that see it, and others that have it among their tile's 16 columns, in rows
    that see it or are next to one that does."""
    layer = Layer(1, 2, 16, 14, 33, 7, dtype)
    for seed, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        operands = layer.operands(seed)
        row, column, channel = 5 + seed, 9 + 5 * seed, 3 + 10 * seed
        operands["x"][0, row, column, channel] = value
        result, _ = runner.run_fused(**operands, kernel_size=7)
        bad = ~result[0].isfinite()
        sees = torch.zeros_like(bad)
        sees[row - 3 : row + 4, column - 3 : column + 4, channel] = True
        assert bad[sees].all()
        near = torch.zeros_like(bad)
        near[row - 4 : row + 5, max(0, column - 12) : column + 11, channel] = True
        assert not bad[~near].any()


@HALF_DTYPES
def test_with_a_stride_no_nan_is_lost_either(runner: FusedRunner, dtype: torch.dtype) -> None:
    """It goes as far as the tiles of 4 x 4 positions that have it among their rows and 16 columns."""
    layer = Layer(1, 2, 16, 27, 41, 7, dtype, stride=2)
    operands = layer.operands(0)
    row, column, channel = 12, 19, 21
    operands["x"][0, row, column, channel] = float("nan")
    result, _ = runner.run_fused(**operands, kernel_size=7, stride=2)
    bad = result[0].isnan()
    sees = torch.zeros_like(bad)
    sees[(row - 2) // 2 : (row + 3) // 2 + 1, (column - 2) // 2 : (column + 3) // 2 + 1, channel] = True
    assert bad[sees].all()
    near = torch.zeros_like(bad)
    near[(row - 10) // 2 : (row + 9) // 2 + 1, (column - 12) // 2 : (column + 3) // 2 + 1, channel] = True
    assert not bad[~near].any()


def test_a_nan_of_the_features_spoils_its_position_alone(runner: FusedRunner) -> None:
    layer = Layer(1, 3, 24, 9, 19, 5, torch.bfloat16)
    operands = layer.operands(0)
    operands["features"][0, 4, 11, 7] = float("nan")
    result, _ = runner.run_fused(**operands, kernel_size=5)
    bad = result.isnan()
    assert bad[0, 4, 11].all() and bad.sum() == bad[0, 4, 11].numel()


@HALF_DTYPES
@pytest.mark.parametrize("stride", [1, 2])
def test_an_infinite_tap_is_not_lost_and_stays_in_its_group(
    runner: FusedRunner, dtype: torch.dtype, stride: int
) -> None:
    layer = Layer(1, 3, 24, 9, 19, 7, dtype, stride=stride)
    operands = layer.operands(0)
    operands["bias"][49 + 3 * 7 + 2] = float("inf")  # of the second group
    result, _ = runner.run_fused(**operands, kernel_size=7, stride=stride)
    bad = ~result.isfinite()
    assert bad[..., GROUP : 2 * GROUP].all()
    assert not bad[..., :GROUP].any() and not bad[..., 2 * GROUP :].any()
