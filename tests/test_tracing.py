"""torch.jit.trace and torch.fx: graphs that give what the call gives, at other sizes too, and nothing remembered."""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import involution
from involution import _arguments
from involution.models import FeaturePyramid, RedNet

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")

# Every geometry, with stride 1 where the kernels must fit the output.
OPERATIONS: dict[str, list[dict[str, Any]]] = {
    "involution": [{"padding": 1}, {"padding": "same"}, {"padding": 2, "dilation": 2}],
    "involution_transpose": [
        {"padding": "same"},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "dilation": 2},
    ],
    "local_correlation": [{"padding": 1}, {"padding": "same", "dilation": 2}],
}
CASES = [
    (operation, axes, arguments)
    for operation, choices in OPERATIONS.items()
    for axes in (1, 2, 3)
    for arguments in choices
]


def trace(function: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
    """A trace that says nothing of values that it takes for constants."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        return torch.jit.trace(function, inputs)


@pytest.mark.parametrize(("operation", "axes", "arguments"), CASES, ids=str)
def test_operations(operation: str, axes: int, arguments: dict[str, Any]) -> None:
    """Stride 1 keeps the size where kernels must fit the output, so other sizes follow those of the input."""

    def function(first: Tensor, second: Tensor) -> Tensor:
        called = getattr(involution, f"{operation}{axes}d")
        if operation == "local_correlation":
            return called(first, second, 3, 2, **arguments)
        return called(first, second, **arguments)

    def inputs(batch: int, *space: int) -> tuple[Tensor, Tensor]:
        first = torch.randn(batch, 4, *space[:axes], requires_grad=True)
        second = (2, *(3,) * axes, *space[:axes]) if operation != "local_correlation" else first.shape[1:]
        return first, torch.randn(batch, *second, requires_grad=True)

    traced = trace(function, *inputs(2, 6, 7, 5))
    for other in (inputs(2, 6, 7, 5), inputs(3, 5, 1, 8)):
        expected, output = function(*other), traced(*other)
        assert torch.equal(output, expected)
        upstream = torch.randn_like(output)
        got = torch.autograd.grad(output, other, upstream)
        torch.testing.assert_close(got, torch.autograd.grad(expected, other, upstream))


class Sum(nn.Module):
    """One number of a list of maps: torch warns of traces that return lists."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.stack([each.square().sum() for each in maps]).sum()


def make_rednet(**arguments: Any) -> nn.Module:
    return RedNet((1, 1), widths=(16, 16), strides=(1, 2), stem="small", stem_channels=32, **arguments)


MODULES: dict[str, Callable[[], nn.Module]] = {
    **{
        f"{name}{axes}d, stride {stride}": functools.partial(
            getattr(involution, f"{name}{axes}d"), 32, 3, stride
        )
        for name in ("Involution", "InvolutionTranspose", "LocalAttention")
        for axes in (1, 2, 3)
        for stride in (1, 2)
    },
    "Involution2d, padded": lambda: involution.Involution2d(32, 3, 2, padding=2, kernel_normalizer="softmax"),
    "Involution3d, cropped": lambda: involution.Involution3d(32, 3, padding=0, groups=1, out_channels=4),
    "InvolutionTranspose2d, padded": lambda: involution.InvolutionTranspose2d(
        32, 3, (2, 3), padding=1, output_padding=1
    ),
    "InvolutionLayer": lambda: involution.InvolutionLayer(32, 32, 3, padding=1),
    "RedNet": lambda: make_rednet(in_channels=32, num_classes=5),
    "pyramid": lambda: nn.Sequential(
        make_rednet(in_channels=32, features_only=True),
        FeaturePyramid((64, 64), 16, neck="involution"),
        Sum(),
    ),
}


def example(module: nn.Module, batch: int, *space: int) -> Tensor:
    return torch.randn(batch, 32, *space[: getattr(module, "axes", 2)])


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    traced = trace(module, example(module, 1, 9, 8, 5))
    for x in (example(module, 1, 9, 8, 5), example(module, 2, 6, 11, 4)):
        torch.testing.assert_close(traced(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
def test_symbolic_traces_of_modules(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    graph = fx.symbolic_trace(module)
    # Before 2.14 torch could not pickle a trace of a forward whose annotations are text, as those of any module under
    # `from __future__ import annotations` are.
    pickles = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
    again = fx.symbolic_trace(pickle.loads(pickle.dumps(graph)) if pickles else copy.deepcopy(graph))
    for x in (example(module, 1, 9, 8, 5), example(module, 2, 6, 11, 4)):
        assert torch.equal(graph(x), module(x))
        assert torch.equal(again(x), module(x))


def test_symbolic_traces_of_operations() -> None:
    class Composed(nn.Module):
        def __init__(self, axes: int) -> None:
            super().__init__()
            self.axes = axes

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            points = involution.kernel_decompose(weight).sum((1, 2))
            correlation = getattr(involution, f"local_correlation{self.axes}d")
            scores = correlation(x, x, kernel_size=3, groups=2, padding="same") * points.mean()
            spread = getattr(involution, f"involution_transpose{self.axes}d")(x, scores, padding=1)
            return getattr(involution, f"involution{self.axes}d")(spread, scores, padding="same")

    for axes in (1, 2, 3):
        module = Composed(axes)
        inputs = torch.randn(2, 4, *(5, 4, 3)[:axes]), torch.randn(4, 3, *(3,) * axes)
        assert torch.equal(fx.symbolic_trace(module)(*inputs), module(*inputs))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_symbolic_trace_of_a_network_in_training(checkpointing: bool) -> None:
    model = make_rednet(drop_path=0.5, dropout=0.2, num_classes=3)
    model.set_grad_checkpointing(checkpointing)
    graph, x = fx.symbolic_trace(copy.deepcopy(model)), torch.randn(4, 3, 9, 8)
    results = []
    for module in (model, graph):
        torch.manual_seed(0)
        output = module(x)
        results.append((output, *torch.autograd.grad(output.square().sum(), list(module.parameters()))))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_symbolic_trace_of_a_pyramid_alone() -> None:
    pyramid = FeaturePyramid((8, 6), 16, neck="involution", extra_levels=1).eval()
    maps = [torch.randn(1, 8, 7, 8), torch.randn(1, 6, 4, 4)]
    graph = fx.symbolic_trace(pyramid)
    torch.testing.assert_close(graph(maps), pyramid(maps), rtol=0, atol=0)
    with pytest.raises(ValueError, match="takes 2 maps, but got 1"):
        graph(maps[:1])


def test_a_graph_still_explains_wrong_arguments() -> None:
    graph = fx.symbolic_trace(involution.Involution2d(32, 5, padding=1, norm_layer=None))
    with pytest.raises(ValueError, match="larger than the padded input"):
        graph(torch.randn(1, 32, 2, 2))
    with pytest.raises(ValueError, match="The images must be"):
        fx.symbolic_trace(make_rednet())(torch.randn(1, 4, 8, 8))


def test_torchvisions_feature_extractor(torchvision) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = make_rednet(num_classes=3).eval()
    nodes = {"stages.0": "map", "stages.1.0.involution": "weighed", "head": "scores"}
    extractor = create_feature_extractor(model, nodes)
    x, seen = torch.randn(1, 3, 9, 8), {}
    model.stages[1][0].involution.register_forward_hook(lambda *call: seen.update(weighed=call[2]))
    expected = {
        "map": model.forward_intermediates(x, (0,), intermediates_only=True)[0],
        "scores": model(x),
        **seen,
    }
    torch.testing.assert_close(extractor(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
def test_scripting_is_refused_in_a_sentence(name: str) -> None:
    for module in (MODULES[name](), nn.Sequential(nn.Identity(), MODULES[name]())):
        with pytest.raises(NotImplementedError, match=r"cannot be scripted: .* Use torch\.export"):
            torch.jit.script(module)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
def test_operators_in_a_scripted_function() -> None:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.ops.involution.involution(x, weight, [1, 1], [1, 1], [1, 1]).relu()

    x, weight = torch.randn(1, 4, 5, 6), torch.randn(1, 2, 3, 3, 5, 6)
    expected = involution.involution2d(x, weight, padding=1).relu()
    assert torch.equal(torch.jit.script(function)(x, weight), expected)


def test_scales_keep_the_precision_of_float64() -> None:
    layer = involution.InvolutionLayer(3, 6, 3, groups=1, dtype=torch.float64)
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    assert torch.equal(trace(layer, x)(x), layer(x))


def test_sizes_as_arguments() -> None:
    """A trace keeps them, and torch says so."""

    def function(query: Tensor, key: Tensor) -> Tensor:
        sizes = key.shape[2] // 2, key.shape[3] // 2
        return involution.local_correlation2d(query, key, sizes, query.shape[1] // 2, padding=key.shape[1])

    query, key = torch.randn(1, 4, 12, 13), torch.randn(1, 4, 6, 7)
    with pytest.warns(torch.jit.TracerWarning, match="Python integer"):
        traced = torch.jit.trace(function, (query, key))
    assert torch.equal(traced(query, key), function(query, key))


def test_tensors_as_arguments_are_still_refused() -> None:
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(1, 1, 3, 3, 5, 5)
    with pytest.raises(TypeError, match="padding must be an integer"), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of what the message prints
        torch.jit.trace(lambda *pair: involution.involution2d(*pair, padding=torch.tensor(1.0)), (x, weight))


@pytest.mark.parametrize("check", ["involution_window", "transpose_window", "correlation_window"])
def test_what_a_trace_has_seen_is_not_remembered(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks get numbers alone, whose answers hold everywhere."""
    seen: list[Any] = []
    original = getattr(_arguments, check)
    monkeypatch.setattr(_arguments, check, lambda *given: (seen.extend(given), original(*given))[1])
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(2, 2, 3, 3, 6, 7)
    trace(lambda x, weight: involution.involution2d(x, weight, padding=1), x, weight)
    trace(lambda x, weight: involution.involution_transpose2d(x, weight, padding=1), x, weight)
    trace(lambda x: involution.local_correlation2d(x, x, 3, padding=1), x)
    flat = [n for given in seen for n in (given if isinstance(given, (tuple, list)) else [given])]
    assert flat and all(type(number) is int for number in flat)


def test_wrong_shapes_are_explained_while_tracing() -> None:
    with pytest.raises(ValueError, match=r"weight must have shape \(1, 1, 3, 3, 3, 3\)"):
        trace(involution.involution2d, torch.randn(1, 2, 5, 5), torch.randn(1, 1, 3, 3, 5, 5))
    with pytest.raises(ValueError, match=r"input must be \(batch, 32, height, width\).*\(1, 8, 5, 5\)"):
        trace(involution.InvolutionTranspose2d(32), torch.randn(1, 8, 5, 5))


def test_tensorboards_graph(tmp_path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(involution.InvolutionTranspose2d(32), torch.randn(1, 32, 5, 4))
    assert b"involution::involution_transpose" in b"".join(file.read_bytes() for file in tmp_path.iterdir())
