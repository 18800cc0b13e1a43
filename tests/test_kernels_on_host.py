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

# An H200, whose blocks are cut short to be many; one with few multiprocessors, on which a block marches far; and
# one with so little shared memory that a block has few channels and columns.
GPUS = (
    DeviceLimits(),
    DeviceLimits(99 * 1024, 100 * 1024, 4),
    DeviceLimits(227 * 1024, 228 * 1024, 1),
    DeviceLimits(48 * 1024, 100 * 1024, 1),
)
FORMATS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])


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


def roles(operation: str) -> tuple[str, str]:
    """The layouts of the source, and of the other activation."""
    return ("y_layout", "x_layout") if operation == "involution_transpose" else ("x_layout", "y_layout")


def others(rng: random.Random, case: Case, operation: str, layout: str, one_format: bool) -> Case:
    """The source in `layout`; the other tensors too, or in any layout."""
    source, other = roles(operation)
    if one_format:
        return case.with_(**{source: layout, other: layout, "w_layout": layout})
    choices = ("contiguous", "channels_last", "misaligned", "sliced")
    weight = rng.choice(choices[:3])  # of a sliced kernel tensor the points are not at one stride
    return case.with_(**{source: layout, other: rng.choice(choices), "w_layout": weight})


@HALF_DTYPES
@EACH_OPERATION
@FORMATS
@pytest.mark.parametrize("width", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("square", [True, False], ids=["square", "any"])
def test_every_band_kernel(
    runner: HostRunner,
    operation: str,
    layout: str,
    width: int,
    stride: int,
    square: bool,
    dtype: torch.dtype,
) -> None:
    """Square kernels of groups of 16, 32 ... channels, and any height and multiple of 8 channels.

    float16 has the same kernels but for its conversions, and sees the first of the same problems.
    """
    rng = random.Random(f"{operation} {layout} {width} {stride} {square}")
    for seed in range(3 if dtype == torch.bfloat16 else 1):
        channels = rng.choice((16, 16, 32, 48) if square else (8, 24, 40, 16))
        if square and operation == "local_correlation":
            channels = 16
        height = width if square else rng.choice([h for h in (1, 2, 4, 6, 7) if h != width])
        vertical = stride if square else rng.choice((1, 2, 3))
        case = Case(
            batch=rng.choice((1, 2)),
            groups=rng.choice((1, 2, 3, 4)),
            channels_per_group=channels,
            input=(rng.randint(1, 11), rng.choice((1, 7, 9, 16, 17, 24, 37))),
            kernel=(height, width),
            stride=(vertical, stride),
            padding=(rng.randint(3, 6), rng.randint(width // 2, width)),
            dilation=(1, 1),
            dtype=dtype,
        )
        case = others(rng, case, operation, layout, one_format=seed == 0)
        plan = execute(runner, operation, case, seed, limits=rng.choice(GPUS))
        assert plan.startswith("band square " if square else "band "), plan
        assert ("square" in plan) == square
        width_of_source = (case.output if operation == "involution_transpose" else case.input)[1]
        if width_of_source > 1:  # of one column the strides do not tell the format
            assert f"{layout}:" in plan


@EACH_OPERATION
@FORMATS
@pytest.mark.parametrize("width", [3, 5, 7, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_fma_kernel(runner: HostRunner, operation: str, layout: str, width: int, stride: int) -> None:
    rng = random.Random(f"{operation} {layout} {width} {stride}")
    for seed in range(6):
        case = Case(
            batch=rng.choice((1, 2)),
            groups=rng.choice((1, 2, 3, 4)),
            channels_per_group=rng.choice((4, 8, 12, 16, 16, 20, 64)),
            input=(rng.randint(1, 11), rng.choice((1, 6, 7, 9, 14, 16, 17, 37))),
            kernel=(rng.choice((1, 2, width, 8)), width),
            stride=(rng.choice((1, 2, 3)), stride),
            padding=(rng.randint(4, 7), rng.randint(width // 2, width)),
            dilation=(1, 1),
            dtype=torch.float32,
        )
        case = others(rng, case, operation, layout, one_format=seed < 2)
        # Many channels of a group and tall kernels have no block where shared memory is small.
        gpus = GPUS if case.channels_per_group <= 12 and case.kernel[0] < 8 else GPUS[::2]
        plan = execute(runner, operation, case, seed, limits=rng.choice(gpus))
        assert plan.startswith("fma "), plan


@EACH_DTYPE
@EACH_OPERATION
def test_every_generic_kernel(runner: HostRunner, operation: str, dtype: torch.dtype) -> None:
    rng = random.Random(operation)
    for seed in range(16):
        case = cases.random_case(rng, rng.choice((1, 2, 3)), dtypes=(dtype,))
        plan = execute(runner, operation, cases.random_layouts(rng, case), seed, force_generic=True)
        assert plan.startswith("generic"), plan


@EACH_OPERATION
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_random_problems(runner: HostRunner, operation: str, axes: int) -> None:
    """Whatever path the plan chooses, on every size of GPU."""
    rng = random.Random(f"{operation} {axes}")
    kinds = set()
    for seed in range(40):
        case = cases.random_case(rng, axes, dtypes=cases.DTYPES[1:])
        if rng.random() < 0.8:  # towards the fast paths
            case = case.with_(
                channels_per_group=rng.choice((4, 8, 16, 24)),
                kernel=(*case.kernel[:-1], rng.choice((3, 5, 7))),
                stride=tuple(1 if d > 1 else s for s, d in zip(case.stride, case.dilation, strict=True)),
                padding=(*case.padding[:-1], rng.randint(3, 5)),
            )
            if min(case.output) < 1:
                continue
        plan = execute(runner, operation, cases.random_layouts(rng, case), seed, limits=rng.choice(GPUS))
        kinds.add(plan.split(" ")[0].rstrip(":"))
    assert kinds == {"band", "fma", "generic"}


@EACH_OPERATION
@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_rednet_shapes(
    runner: HostRunner, operation: str, layout: str, dtype: torch.dtype, stride: int
) -> None:
    """K = 7 and 16 channels a group: copies are as wide as the rows allow."""
    for size, groups in ((14, 1), (28, 2), (56, 4)) if dtype == torch.bfloat16 else ((7, 4), (14, 1)):
        size *= stride
        if size > 56:
            continue
        case = Case(1, groups, 16, (size, size), (7, 7), (stride,) * 2, (3, 3), (1, 1), dtype, *[layout] * 3)
        plan = execute(runner, operation, case, limits=GPUS[2])
        assert plan.startswith("fma" if dtype == torch.float32 else "band square"), plan
        pieces = plan.split("pieces of ")[1]
        if layout == "channels_last":
            activations = pieces.replace(" bytes", "").replace(" and", ",").split(", ")
            del activations[{"involution": 1, "involution_transpose": 1, "local_correlation": 2}[operation]]
            assert activations == ["16", "16"], plan
        elif dtype == torch.bfloat16 and operation == "involution" and size == 56:
            assert pieces.startswith("8, "), plan


@EACH_OPERATION
@pytest.mark.parametrize(
    ("width", "kernel", "groups", "piece"),
    [(24, 3, 2, 16), (21, 3, 2, 4), (22, 3, 2, 8), (16, 7, 1, 16), (60, 5, 1, 8), (44, 5, 2, 16)],
)
def test_narrow_kernel_values_of_several_positions_are_copied_at_once(
    runner: HostRunner, operation: str, width: int, kernel: int, groups: int, piece: int
) -> None:
    """Two groups of 3x3 bfloat16 values are 36 bytes: as many positions as the map's width and 16 bytes allow.

    With few multiprocessors, so that no block is cut to one group for the sake of more blocks.
    """
    square, layouts = (kernel, kernel), ["channels_last"] * 3
    padding = (kernel // 2,) * 2
    case = Case(2, groups, 16, (5, width), square, (1, 1), padding, (1, 1), torch.bfloat16, *layouts)
    for limits in GPUS[1:3]:
        plan = execute(runner, operation, case, limits=limits)
        pieces = plan.split("pieces of ")[1].replace(" bytes", "").replace(" and", ",").split(", ")
        assert pieces[2 if operation == "local_correlation" else 1] == str(piece), plan


@EACH_OPERATION
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@FORMATS
def test_a_dilation_is_taken_in_parts(
    runner: HostRunner, operation: str, layout: str, dtype: torch.dtype
) -> None:
    """One for each residue of a position by the dilation."""
    for dilation in ((1, 2), (1, 4), (2, 2), (3, 1)):
        case = Case(1, 2, 16, (9, 21), (3, 5), (1, 1), (3, 8), dilation, dtype, *[layout] * 3)
        parts = execute(runner, operation, case).split("; ")
        plans = [part for part in parts if part.startswith(("fma", "band"))]
        assert len(plans) == dilation[0] * dilation[1], parts


@EACH_OPERATION
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@FORMATS
def test_sequences_march_over_the_batch(
    runner: HostRunner, operation: str, layout: str, dtype: torch.dtype
) -> None:
    case = Case(5, 2, 16, (150,), (7,), (1,), (3,), (1,), dtype, *[layout] * 3)
    plan = execute(runner, operation, case, limits=GPUS[2])
    assert plan.startswith(("fma", "band")) and "1 chunks" in plan, plan


@EACH_OPERATION
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@FORMATS
def test_volumes(runner: HostRunner, operation: str, layout: str, dtype: torch.dtype) -> None:
    """With a stride and a dilation in depth, too."""
    for kernel, stride, padding, dilation in (
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ((2, 5, 5), (2, 1, 1), (1, 2, 2), (1, 1, 1)),
        ((3, 7, 7), (1, 2, 2), (2, 3, 3), (2, 1, 1)),
    ):
        case = Case(2, 2, 16, (4, 6, 11), kernel, stride, padding, dilation, dtype, *[layout] * 3)
        assert execute(runner, operation, case).startswith(("fma", "band square")), kernel


@EACH_OPERATION
def test_what_is_left_to_the_generic_kernels(runner: HostRunner, operation: str) -> None:
    case = Case(1, 1, 16, (9, 12), (3, 3), (1, 1), (3, 3), (1, 1), torch.float32)
    half = case.with_(dtype=torch.float16)
    reasons = {
        "float64 has no other kernels": case.with_(dtype=torch.float64),
        "width is not 3, 5, 7 or 9": case.with_(kernel=(3, 4)),
        "width is not 3, 5 or 7": half.with_(kernel=(3, 9), padding=(3, 4)),
        "stride along the width is above 2": case.with_(stride=(1, 3)),
        "dilation comes with a stride": case.with_(stride=(1, 2), dilation=(1, 2)),
        "not a multiple of 4": case.with_(channels_per_group=6),
        "not a multiple of 8": half.with_(channels_per_group=12),
        "not at one stride": case.with_(w_layout="sliced"),
    }
    if operation == "involution_transpose":
        reasons["higher than 7 rows"] = half.with_(kernel=(9, 3), padding=(4, 1))
    if operation == "local_correlation":
        reasons["no block fits"] = case.with_(channels_per_group=2048)
        del reasons["not at one stride"]  # a result is contiguous or channels_last
    for reason, other in reasons.items():
        plan = execute(runner, operation, other)
        assert plan.startswith("generic: ") and reason in plan, plan


def test_a_shape_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOLUTION_CUDA_PLAN", "runs=1 chunks=3 stages=4 producers=3")
    case = Case(1, 4, 16, (30, 30), (7, 7), (1, 1), (3, 3), (1, 1), torch.bfloat16, *["channels_last"] * 3)
    with HostRunner() as runner:
        plan = execute(runner, "involution", case)
        assert "2 + 3 warps" in plan and "4 strips of 1 runs, 3 chunks" in plan and "4 stages" in plan, plan
    monkeypatch.setenv("INVOLUTION_CUDA_PLAN", "generic")
    with HostRunner() as runner:
        assert execute(runner, "involution", case).startswith("generic: INVOLUTION_CUDA_PLAN asks for it")


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
@FORMATS
def test_band_kernels_lose_no_nan_and_spread_it_within_a_run(
    runner: HostRunner, operation: str, layout: str, dtype: torch.dtype
) -> None:
    """The zeros beside the band make NaN of a NaN or infinity of the source: in its channel, in the rows of the
    result that see it, in the runs of 8 columns (of 16 with a stride of 2) that meet its column. Local correlation
    has no such zeros."""
    rng = random.Random(f"{operation} {layout}")
    for seed, value in enumerate((float("nan"), float("inf"), -float("inf")) * 3):
        case = Case(1, 2, 16, (9, 53), (3, 3), (1, 1), (2, 1), (1, 1), dtype, *[layout] * 3)
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
        assert plan.startswith("band square"), plan
        exact = torch.from_numpy(cases.exact(operation, first, second, case.arguments(operation))).float()
        affected = ~exact.isfinite()
        spread = result.isnan() & ~exact.isnan()
        assert not (affected & result.isfinite()).any(), "one was lost"
        right = ~spread
        torch.testing.assert_close(
            result[right].float(), exact[right], equal_nan=True, rtol=2e-2, atol=2e-2 * 9
        )
        if operation == "local_correlation":
            assert not spread.any()
            continue
        # A run meets 16 columns of the source, the first of them up to 7 in front of its first window.
        bad = ~first.isfinite()
        border = 2 if operation == "involution" else 0
        row_is_bad = torch.nn.functional.pad(bad, (0, 0, border, border))
        rows_seeing = torch.stack([row_is_bad[:, :, i : i + exact.shape[2]] for i in range(3)]).any(0)
        for b, c, row, column in spread.nonzero().tolist():
            start = column // 8 * 8 - 1 - 7
            assert rows_seeing[b, c, row, max(start, 0) : start + 7 + 16].any()
