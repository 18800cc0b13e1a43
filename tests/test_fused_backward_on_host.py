"""The shipped kernels of the fused layer's gradients, executed on the host under sanitizers, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import host_build
import numpy as np
import pytest
import torch
from host_runner import DeviceLimits, FusedBackwardRunner
from test_fused_on_host import GPUS, GROUP, HALF_DTYPES, Layer, kernels
from torch import Tensor

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

REACH = 3
NAMES = ("input", "features", "weight", "bias")


@pytest.fixture(scope="module")
def runner() -> Iterator[FusedBackwardRunner]:
    with FusedBackwardRunner() as runner:
        yield runner


def operands_of(layer: Layer, seed: int) -> dict[str, Tensor | None]:
    operands = layer.operands(seed)
    chosen = {name: operands[name] for name in ("x", "features", "weight", "bias")}
    generator = torch.Generator().manual_seed(seed + 1000)
    return {"dy": (torch.rand(operands["x"].shape, generator=generator) * 2 - 1).to(layer.dtype), **chosen}


def kernel_gradients(layer: Layer, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(B, H, W, G, 7, 7) in float64: summed in float32 in the kernels' order and rounded to the dtype."""
    pad = ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0), (0, 0))
    grouped = (*layer.space, layer.groups, GROUP)
    y, padded = dy.astype(np.float32).reshape(grouped), np.pad(x.astype(np.float32).reshape(grouped), pad)
    found = np.zeros((*layer.space, layer.groups, 7, 7), np.float32)
    for kh, kw in np.ndindex(7, 7):
        window = padded[:, kh : kh + layer.height, kw : kw + layer.width]
        for channel in range(GROUP):
            found[..., kh, kw] += y[..., channel] * window[..., channel]
    return torch.from_numpy(found).to(layer.dtype).double().numpy()


def expected(layer: Layer, operands: dict[str, Tensor | None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each gradient in float64, of kernels and their gradients as the kernels round them, and the sum of its terms'
    magnitudes."""
    dy, x, h, w = (operands[name].double().numpy() for name in ("dy", "x", "features", "weight"))
    made = kernels(layer, operands["features"], operands["weight"], operands["bias"], rounded=True)
    found: list[list[np.ndarray]] = []
    for of in (lambda array: array, np.abs):
        k, y = of(made), of(dy)
        dx = np.zeros((layer.batch, layer.height + 2 * REACH, layer.width + 2 * REACH, x.shape[-1]))
        for kh, kw in np.ndindex(7, 7):
            dx[:, kh : kh + layer.height, kw : kw + layer.width] += y * np.repeat(k[..., kh, kw], GROUP, -1)
        dk = of(kernel_gradients(layer, dy, x)).reshape(*layer.space, -1)
        dw = np.einsum("bhwp,bhwr->pr", dk, of(h))
        found.append([dx[:, REACH:-REACH, REACH:-REACH], dk @ of(w), dw, dk.sum((0, 1, 2))])
    return list(zip(*found, strict=True))


def check(
    runner: FusedBackwardRunner, layer: Layer, seed: int = 0, limits: DeviceLimits = GPUS[0]
) -> list[str]:
    """Runs the gradients in two orders of threads, compares, and returns the plans."""
    operands = operands_of(layer, seed)
    results, plans = runner.run_fused_backward(**operands, limits=limits, seed=2 * seed + 1)
    assert not any("not fused" in plan for plan in plans), plans
    again, _ = runner.run_fused_backward(**operands, limits=limits, seed=2 * seed + 2)
    eps, tiny = torch.finfo(layer.dtype).eps, torch.finfo(layer.dtype).smallest_normal
    for name, result, other, (y, magnitude) in zip(
        NAMES, results, again, expected(layer, operands), strict=True
    ):
        assert torch.equal(result, other), f"the gradient of {name} depends on the order of threads; {plans}"
        # The rounding of the result, half a unit, and that of sums in float32.
        bound = 0.5 * eps * abs(y) * (1 + eps) + 60 * 2.0**-24 * magnitude + tiny
        error = abs(result.double().numpy() - y)
        assert (error <= bound).all(), f"{name}, {layer}: {(error / bound).max():.3g} of the bound; {plans}"
    return plans


@HALF_DTYPES
@pytest.mark.parametrize(
    ("batch", "groups", "reduced", "height", "width", "gpu"),
    [
        (1, 1, 8, 1, 1, 0),
        (2, 3, 16, 5, 6, 2),
        (1, 5, 24, 9, 19, 0),
        (1, 2, 32, 2, 50, 2),
        (1, 5, 56, 6, 17, 0),
        (2, 2, 72, 4, 9, 0),
        (1, 3, 128, 7, 7, 1),
    ],
)
def test_every_kernel(
    runner: FusedBackwardRunner,
    batch: int,
    groups: int,
    reduced: int,
    height: int,
    width: int,
    gpu: int,
    dtype: torch.dtype,
) -> None:
    """With fewer rows, columns and groups than a tile and a window have, and with more."""
    layer = Layer(batch, groups, reduced, height, width, 7, dtype, bias=reduced != 24)
    check(runner, layer, reduced, GPUS[gpu])


def test_a_block_marches_down_rows_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rings turn several times."""
    monkeypatch.setenv("INVOLUTION_CUDA_PLAN", "chunks=1 images=3")
    with FusedBackwardRunner() as runner:
        of_input, _, of_weight = check(runner, Layer(3, 2, 16, 22, 19, 7, torch.bfloat16))
    assert "1 chunks of 24 rows" in of_input
    assert "1 chunks of 24 rows, 3 images" in of_weight


def test_blocks_share_a_map(runner: FusedBackwardRunner) -> None:
    for plan in check(runner, Layer(1, 2, 16, 9, 70, 7, torch.bfloat16)):
        assert ", 1 strips" not in plan


@pytest.mark.parametrize(
    ("changes", "stride", "groups", "reason"),
    [
        ({"kernel": 5}, 1, None, "the kernel is not 7x7"),
        ({}, 2, None, "the stride is not 1"),
        ({"reduced": 12}, 1, None, "not a multiple of 8"),
        ({}, 1, 1, "does not have 16 channels"),
    ],
)
def test_what_has_no_kernel(
    runner: FusedBackwardRunner, changes: dict[str, int], stride: int, groups: int | None, reason: str
) -> None:
    layer = replace(Layer(1, 2, 16, 5, 6, 7, torch.bfloat16), **changes)
    results, plans = runner.run_fused_backward(
        **operands_of(layer, 0), kernel_size=layer.kernel, stride=stride, groups=groups
    )
    assert len(plans) == 3 and all("not fused: " in plan and reason in plan for plan in plans), plans
    assert all(result.isnan().all() for result in results)


def test_a_device_with_little_room_has_some_plans(runner: FusedBackwardRunner) -> None:
    layer = Layer(1, 4, 128, 5, 6, 7, torch.bfloat16)
    results, plans = runner.run_fused_backward(**operands_of(layer, 0), limits=GPUS[2])
    for plan, name in zip(plans, NAMES[:2], strict=False):
        assert plan == f"gradient of {name}: not fused: no block fits into shared memory"
    assert [bool(result.isnan().any()) for result in results] == [True, True, False, False]


def test_no_nan_is_lost(runner: FusedBackwardRunner) -> None:
    """One of dy reaches what sees it, and not further than a row and a column beyond."""
    layer = Layer(1, 2, 16, 14, 21, 7, torch.bfloat16)
    operands = operands_of(layer, 0)
    row, column, channel = 6, 9, 3
    operands["dy"][0, row, column, channel] = float("nan")
    (dx, dfeatures, dweight, dbias), _ = runner.run_fused_backward(**operands)
    bad = dx[0].isnan()
    sees, near = torch.zeros_like(bad), torch.zeros_like(bad)
    sees[row - 3 : row + 4, column - 3 : column + 4, channel] = True
    near[row - 4 : row + 5, column - 4 : column + 5, channel] = True
    assert bad[sees].all() and not bad[~near].any()
    bad = dfeatures[0].isnan()
    assert bad[row, column].all() and bad.sum() == bad[row, column].numel()
    assert dweight[:49].isnan().all() and not dweight[49:].isnan().any()
    assert dbias[:49].isnan().all() and not dbias[49:].isnan().any()
