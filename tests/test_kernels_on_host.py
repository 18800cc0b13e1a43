"""The shipped CUDA kernels, executed on the host, against the float64 oracle: every instantiation.

They run under AddressSanitizer and UndefinedBehaviorSanitizer, with outputs and shared memory poisoned and
the order of threads and blocks shuffled by two seeds, which must give the same bits.
"""

import random
from collections.abc import Iterator

import cases
import host_build
import pytest
import torch
from cases import Case, assert_right
from host_runner import DeviceLimits, HostRunner
from torch import Tensor

pytestmark = pytest.mark.skipif(
    host_build.why_unavailable() is not None, reason=host_build.why_unavailable() or "available"
)

EACH_DTYPE = pytest.mark.parametrize(
    "dtype", cases.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)
HALF_DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
EACH_OPERATION = pytest.mark.parametrize("operation", cases.OPERATIONS)

# A GPU with 99 KiB of shared memory for a block, and one with so little that only small tiles fit.
SMALL_GPU = DeviceLimits(99 * 1024, 100 * 1024, 20)
TINY_GPU = DeviceLimits(24 * 1024, 48 * 1024, 4)


@pytest.fixture(scope="module")
def runner() -> Iterator[HostRunner]:
    with HostRunner() as runner:
        yield runner


def execute(runner: HostRunner, operation: str, case: Case, seed: int = 0, **options: object) -> str:
    """Runs one kernel twice in different orders, checks it, and returns the plan it followed."""
    first, second = case.operands(operation, seed)
    x, w, y = case.tensors(seed)
    third = {"involution": y, "involution_transpose": x, "local_correlation": w}[operation]
    layout, leading = {
        "involution": (case.y_layout, 2),
        "involution_transpose": (case.x_layout, 2),
        "local_correlation": (case.w_layout, 2 + case.axes),
    }[operation]
    out = cases.laid_out(
        third.new_empty(third.shape), "contiguous" if layout == "expanded" else layout, leading
    )

    def run(order: int) -> tuple[Tensor, str]:
        return runner.run(
            operation,
            first,
            second,
            out,
            kernel_size=case.kernel,
            groups=case.groups,
            seed=order,
            **case.window,
            **options,  # type: ignore[arg-type]
        )

    result, plan = run(2 * seed + 1)
    assert_right(result, operation, first, second, case.arguments(operation))
    again, _ = run(2 * seed + 2)
    assert torch.equal(result, again), f"{operation} depends on the order of threads; plan: {plan}"
    return plan


@EACH_DTYPE
@EACH_OPERATION
@pytest.mark.parametrize("width", [3, 5, 7, "any"])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_tiled_kernel(
    runner: HostRunner, operation: str, width: int | str, stride: int, dtype: torch.dtype
) -> None:
    """Dilated along the width, too; rows of any other width are taken in pieces."""
    rng = random.Random(f"{operation} {width} {stride}")
    for seed in range(8):
        points = rng.choice((2, 4, 6, 8, 9, 16, 23)) if width == "any" else int(width)
        case = Case(
            batch=rng.choice((1, 2)),
            groups=rng.choice((1, 2)),
            channels_per_group=rng.choice((1, 3, 12, 20, 8 if dtype.itemsize > 2 else 9)),  # not banded
            input=(rng.randint(1, 19), rng.randint(4, 23)),
            kernel=(rng.randint(3, 7), points),
            stride=(rng.randint(1, 3), stride),
            padding=(rng.randint(3, 6), rng.randint(points // 2, points)),
            dilation=(1, rng.choice((1, 2, 4)) if stride == 1 else 1),
            dtype=dtype,
        )
        if case.output[1] < 1:
            case = case.with_(dilation=(1, 1))
        if seed == 0:  # too many to be spread over more lanes, as those of so small a problem are
            case = case.with_(batch=1, channels_per_group=36 if dtype.itemsize > 2 else 37)
        case = cases.random_layouts(rng, case)
        if case.w_layout == "sliced":  # whose kernel points are not at one stride
            case = case.with_(w_layout="misaligned")
        plan = execute(runner, operation, case, seed)
        for part in plan.split("; "):  # of the transposed operation with a stride
            assert part.startswith("tiled"), plan
            if operation != "local_correlation":
                assert ("8 channels a lane" in part) == (seed == 0), part


@HALF_DTYPES
@EACH_OPERATION
@pytest.mark.parametrize("width", [3, 5, 7])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_banded_kernel(
    runner: HostRunner, operation: str, layout: str, width: int, dtype: torch.dtype
) -> None:
    """With widths that are no multiple of a run or of 16 bytes, and the other tensors in any layout."""
    rng = random.Random(f"{operation} {width} {layout}")
    for seed, channels in enumerate((8, 16, 24, 32, 40)):
        case = Case(
            batch=rng.choice((1, 2)),
            groups=rng.choice((1, 2)),
            channels_per_group=channels,
            input=(rng.randint(1, 11), rng.choice((9, 16, 17, 24, 32, 37))),
            kernel=(rng.randint(1, 7), width),
            stride=(1 if operation == "involution_transpose" else rng.choice((1, 2)), 1),
            padding=(rng.randint(3, 6), rng.randint(0, width - 1)),
            dilation=(rng.choice((1, 2)), 1),
            dtype=dtype,
        )
        if min(case.output) < 1:
            case = case.with_(dilation=(1, 1))
        case = cases.random_layouts(rng, case)
        source = "y_layout" if operation == "involution_transpose" else "x_layout"
        result = "x_layout" if operation == "involution_transpose" else "y_layout"
        case = case.with_(**{source: layout})
        if seed < 2:  # all of one format, as in a network
            case = case.with_(**{result: layout}, w_layout=layout)
        if case.w_layout == "sliced":  # whose kernel points are not at one stride
            case = case.with_(w_layout="misaligned")
        plan = execute(runner, operation, case, seed, limits=rng.choice((None, SMALL_GPU)))
        assert plan.startswith("banded"), plan
        # Of one column alone the strides do not tell the format.
        assert ("source_channels_last" in plan) == (layout == "channels_last"), plan


@EACH_DTYPE
@EACH_OPERATION
def test_every_generic_kernel(runner: HostRunner, operation: str, dtype: torch.dtype) -> None:
    rng = random.Random(operation)
    for seed in range(24):
        case = cases.random_case(rng, rng.choice((1, 2, 3)), dtypes=(dtype,))
        plan = execute(runner, operation, cases.random_layouts(rng, case), seed, force_generic=True)
        assert plan.startswith("generic"), plan


@EACH_OPERATION
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_problems(runner: HostRunner, operation: str, axes: int) -> None:
    """Whatever path the plan chooses, on three sizes of GPU."""
    rng = random.Random(f"{operation} {axes}")
    kinds = set()
    for seed in range(100):
        case = cases.random_case(rng, axes)
        if rng.random() < 0.7:  # towards the tiled path
            stride = rng.choice((1, 2))
            case = case.with_(
                kernel=(*case.kernel[:-1], rng.choice((3, 5, 7))),
                dilation=(*case.dilation[:-1], 1),
                stride=(*((1,) * (axes - 1) if stride == 1 else case.stride[:-1]), stride),
                padding=(*case.padding[:-1], rng.randint(3, 5)),
            )
            if min(case.output) < 1:
                continue
            if rng.random() < 0.4:  # and the banded one
                case = case.with_(
                    channels_per_group=rng.choice((8, 16, 24)), dtype=rng.choice(cases.DTYPES[2:])
                )
        limits = rng.choice((None, SMALL_GPU, TINY_GPU))
        plan = execute(runner, operation, cases.random_layouts(rng, case), seed, limits=limits)
        kinds.add(next((kind for kind in ("banded", "tiled") if plan.startswith(kind)), "generic"))
    assert kinds == {"banded", "tiled", "generic"}


@EACH_OPERATION
@EACH_DTYPE
def test_many_channels_pass_through_in_stages(runner: HostRunner, operation: str, dtype: torch.dtype) -> None:
    """More channels in a group than a block stages at a time, with two kernel slices in depth."""
    for channels, layout in ((70, "contiguous"), (67, "channels_last")):
        case = Case(
            1, 2, channels, (3, 5, 9), (2, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), dtype, *[layout] * 3
        )
        assert execute(runner, operation, case).startswith("tiled")


@EACH_OPERATION
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rednet_shapes(runner: HostRunner, operation: str, layout: str, dtype: torch.dtype) -> None:
    """K = 7 and 16 channels a group, and vectors wherever the rows allow."""
    for size in (7, 14, 28, 56) if dtype == torch.bfloat16 else (7, 14, 28):
        case = Case(1, 2, 16, (size, size), (7, 7), (1, 1), (3, 3), (1, 1), dtype, *[layout] * 3)
        plan = execute(runner, operation, case)
        assert plan.startswith("tiled" if dtype == torch.float32 else "banded"), plan
        if dtype == torch.bfloat16:
            assert ("source_vector" in plan) == (layout == "channels_last" or size % 8 == 0), plan


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_transposed_stride_is_taken_in_parts(runner: HostRunner, layout: str, dtype: torch.dtype) -> None:
    """The input gradients of RedNet's layers with a stride, and sizes that it does not divide."""
    for size, kernel, stride, padding in (
        ((28, 28), (7, 7), (2, 2), (3, 3)),
        ((13, 15), (7, 7), (2, 2), (3, 3)),
        ((1, 9), (3, 5), (1, 3), (1, 0)),
        ((9, 2), (4, 2), (4, 2), (0, 1)),
        ((2, 7), (7, 3), (2, 1), (6, 2)),
    ):
        case = Case(1, 2, 16, size, kernel, stride, padding, (1, 1), dtype, *[layout] * 3)
        plan = execute(runner, "involution_transpose", case)
        kinds = ("tiled",) if dtype == torch.float32 else ("tiled", "banded")
        parts = plan.split("; ")
        # One for each residue of a position by the stride, where there is such a position.
        assert len(parts) == min(size[0], stride[0]) * min(size[1], stride[1]), plan
        assert all(part.startswith(kinds) for part in parts), plan


@EACH_OPERATION
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_long_kernels_are_tiled(runner: HostRunner, operation: str, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "channels_last"):
        sequence = Case(2, 1, 16, (300,), (31,), (1,), (15,), (1,), dtype, *[layout] * 3)
        image = Case(1, 1, 5, (9, 21), (3, 13), (2, 2), (1, 6), (1, 1), dtype, *[layout] * 3)
        for case in (sequence, image):
            for part in execute(runner, operation, case).split("; "):
                assert part.startswith("tiled"), part


@EACH_OPERATION
def test_what_is_left_to_the_generic_kernels(runner: HostRunner, operation: str) -> None:
    case = Case(1, 1, 3, (9, 12), (3, 3), (1, 1), (3, 3), (1, 1), torch.float32)
    reasons = {
        "dilation along the width is not": case.with_(dilation=(1, 3)),
        "width has a stride and a dilation": case.with_(stride=(1, 2), dilation=(1, 2)),
        "stride along the width is above 2": case.with_(stride=(1, 3), dilation=(1, 1)),
    }
    if operation == "involution_transpose":
        reasons = {
            # A residue by the stride without a kernel point, more residues than parts are made of, and a dilation.
            "operation has a stride": case.with_(kernel=(3, 2), stride=(1, 3)),
            "stride that is not": case.with_(stride=(3, 3)),
            "not taken in parts": case.with_(stride=(1, 2), dilation=(1, 2)),
        }
    for reason, other in reasons.items():
        plan = execute(runner, operation, other)
        assert reason in plan and "tile" not in plan, plan


@EACH_OPERATION
def test_banded_in_one_and_three_dimensions(runner: HostRunner, operation: str) -> None:
    for layout in ("contiguous", "channels_last"):
        sequence = Case(2, 2, 16, (150,), (7,), (1,), (3,), (1,), torch.bfloat16, *[layout] * 3)
        volume = Case(
            1, 2, 24, (3, 5, 19), (3, 2, 5), (1, 1, 1), (1, 1, 2), (2, 2, 1), torch.float16, *[layout] * 3
        )
        for case in (sequence, volume):
            assert execute(runner, operation, case).startswith("banded")


@EACH_OPERATION
def test_what_is_not_banded_says_why(runner: HostRunner, operation: str) -> None:
    """And takes the next best: the FMA kernels."""
    case = Case(1, 1, 16, (9, 12), (3, 3), (1, 1), (1, 1), (1, 1), torch.float16)
    assert execute(runner, operation, case).startswith("banded: ")
    reasons = {
        "lose digits": case.with_(dtype=torch.float32),
        "not a multiple of 8": case.with_(channels_per_group=12),
        "width is not 3, 5 or 7": case.with_(kernel=(3, 4)),
        "dilated along its width": case.with_(dilation=(1, 2), padding=(1, 2)),
    }
    if operation != "involution_transpose":
        reasons["stride along the width"] = case.with_(stride=(1, 2))
    if operation == "local_correlation":  # which stages all channels at once
        reasons["no banded tile fits"] = case.with_(channels_per_group=2048)
    for reason, other in reasons.items():
        plan = execute(runner, operation, other)
        assert plan.startswith("tiled: ") and reason in plan


@EACH_OPERATION
def test_dilated_rows_are_tiled(runner: HostRunner, operation: str) -> None:
    case = Case(2, 1, 9, (3, 17, 12), (2, 3, 3), (1, 1, 1), (2, 3, 1), (2, 3, 1), torch.float32)
    assert execute(runner, operation, case).startswith("tiled")


@EACH_OPERATION
def test_more_kernel_rows_than_a_block_takes(runner: HostRunner, operation: str) -> None:
    case = Case(1, 1, 5, (20, 16), (19, 3), (1, 1), (9, 1), (1, 1), torch.float64)
    assert execute(runner, operation, case).startswith("tiled")


@EACH_OPERATION
@pytest.mark.parametrize("force_generic", [False, True])
def test_nan_and_infinity_propagate(runner: HostRunner, operation: str, force_generic: bool) -> None:
    """To exactly the results whose window holds them, through padding as well; none is lost."""
    rng = random.Random(operation)
    for seed, value in enumerate((float("nan"), float("inf"), -float("inf")) * 3):
        case = Case(1, 2, 9, (9, 13), (3, 3), (1, 1), (2, 1), (1, 1), torch.float32)
        first, second = case.operands(operation, seed)
        for tensor in (first, second):
            for _ in range(2):
                tensor.view(-1)[rng.randrange(tensor.numel())] = value
        x, w, y = case.tensors()
        third = {"involution": y, "involution_transpose": x, "local_correlation": w}[operation]
        result, _ = runner.run(
            operation,
            first,
            second,
            torch.empty_like(third),
            kernel_size=case.kernel,
            groups=case.groups,
            force_generic=force_generic,
            **case.window,
        )
        expected = torch.from_numpy(cases.exact(operation, first, second, case.arguments(operation))).float()
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.isinf(), expected.isinf())
        torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@HALF_DTYPES
@EACH_OPERATION
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_banded_kernels_lose_no_nan_and_spread_it_within_a_run(
    runner: HostRunner, operation: str, layout: str, dtype: torch.dtype
) -> None:
    """The zeros beside the band make NaN of a NaN or infinity of the source: in its channel, in the rows of the
    result that see it, in runs of 16 whose columns hold it. Local correlation has no such zeros."""
    rng = random.Random(f"{operation} {layout}")
    for seed, value in enumerate((float("nan"), float("inf"), -float("inf")) * 3):
        case = Case(1, 2, 8, (9, 53), (3, 3), (1, 1), (2, 1), (1, 1), dtype, *[layout] * 3)
        first, second = case.operands(operation, seed)
        tensors = (first, second) if seed % 3 else (first,)
        for tensor in tensors:
            for _ in range(2):
                tensor[tuple(rng.randrange(size) for size in tensor.shape)] = value
        x, w, y = case.tensors()
        third = {"involution": y, "involution_transpose": x, "local_correlation": w}[operation]
        result, plan = runner.run(
            operation,
            first,
            second,
            torch.empty_like(third),
            kernel_size=case.kernel,
            groups=case.groups,
            **case.window,
        )
        assert plan.startswith("banded"), plan
        exact = torch.from_numpy(cases.exact(operation, first, second, case.arguments(operation))).float()
        affected = ~exact.isfinite()
        spread = result.isnan() & ~exact.isnan()
        assert torch.equal(affected & result.isfinite(), torch.zeros_like(affected)), "one was lost"
        right = ~spread
        torch.testing.assert_close(
            result[right].float(), exact[right], equal_nan=True, rtol=2e-2, atol=2e-2 * 9
        )
        if operation == "local_correlation":
            assert not spread.any()
            continue
        # A source position within a window of the row, in one of the columns that a run meets: 16 + 8 from the
        # first of its window, or 32 from the multiple of 8 before that.
        bad = ~first.isfinite()
        border = 2 if operation == "involution" else 0
        row_is_bad = torch.nn.functional.pad(bad.any(3, keepdim=True), (0, 0, border, border))
        rows_seeing = torch.stack([row_is_bad[:, :, i : i + exact.shape[2]] for i in range(3)]).any(0)
        for b, c, row, column in spread.nonzero().tolist():
            run = column // 16 * 16
            start = run - 1 if layout == "channels_last" else run - 8
            columns = range(
                max(start, 0), min(start + (24 if layout == "channels_last" else 32), bad.shape[3])
            )
            assert rows_seeing[b, c, row, 0]
            assert bad[b, c, :, columns.start : columns.stop].any()
