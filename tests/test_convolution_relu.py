"""Convolutions that take a ReLU and an addition along, in the network that ``fuse`` makes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_models import randomise_norms
from torch import nn

from involution import Involution2d
from involution.layers import convolution_relu as module
from involution.layers.convolution_relu import convolution_relu, is_one_kernel
from involution.models import RedNet, fuse
from involution.models.inference import FusedBottleneck, FusedStem, move_bias

WINDOWS = [
    {},
    {"stride": 2},
    {"kernel_size": 3, "padding": 1, "stride": (1, 2)},
    {"kernel_size": 3, "groups": 4},
]


def make(**arguments) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 16, **{"kernel_size": 1, **arguments}).requires_grad_(False)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("arguments", [*WINDOWS, {"bias": False}, {"padding": "same"}], ids=str)
def test_sum_and_relu(arguments, residual) -> None:
    convolution = make(**arguments).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    plain = convolution(x)
    other = torch.randn_like(plain) if residual else None
    expected = (plain if other is None else plain + other).clamp_min(0)
    assert torch.equal(convolution_relu(convolution, x, other), expected)


def tensors_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every tensor were on a GPU; cuDNN is there."""
    monkeypatch.setattr(module.torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(module.torch.backends.cudnn, "is_available", lambda: True)


def test_where_one_kernel_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8, 5, 7)
    assert not is_one_kernel(make(), x)
    tensors_on_cuda(monkeypatch)
    assert is_one_kernel(make(), x) and is_one_kernel(make(bias=False), x, torch.randn(2, 16, 5, 7))
    assert not is_one_kernel(make(), x.double()) and not is_one_kernel(make().double(), x.double())
    assert not is_one_kernel(make(), x[0]) and not is_one_kernel(make(), x[:0])
    assert not is_one_kernel(make(padding="same"), x)
    assert not is_one_kernel(make(padding=1, padding_mode="circular"), x)
    assert not is_one_kernel(nn.Conv1d(8, 16, 1).requires_grad_(False), x)
    assert not is_one_kernel(nn.utils.parametrizations.weight_norm(make()), x)
    watched = make()
    watched.register_forward_hook(lambda *_: None)
    assert not is_one_kernel(watched, x)
    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "is_autocast_enabled", lambda device_type: device_type == "cuda")
        assert not is_one_kernel(make(), x)
    with torch.backends.cudnn.flags(enabled=False):
        assert not is_one_kernel(make(), x)


def test_derivatives_take_torch_s_own_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors_on_cuda(monkeypatch)
    x, trained = torch.randn(2, 8, 5, 7), make().requires_grad_()
    assert not is_one_kernel(trained, x) and not is_one_kernel(make(), x.clone().requires_grad_())
    with torch.no_grad():
        assert is_one_kernel(trained, x)


def test_programs_show_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is recorded holds torch's portable operations, wherever it was recorded."""
    tensors_on_cuda(monkeypatch)
    x = torch.randn(2, 8, 5, 7)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = make()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return convolution_relu(self.convolution, x)

    program = torch.export.export(Network(), (x,))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.conv2d.default", "aten.relu.default"}


def test_parts_that_fuse_replaces() -> None:
    torch.manual_seed(0)
    model = RedNet((1, 2), widths=(16, 32), stem_channels=32, num_classes=5).double().eval()
    randomise_norms(model)
    fused = fuse(model)
    assert isinstance(fused.stem, FusedStem)
    blocks = [block for stage in fused.stages for block in stage]
    assert len(blocks) == 3 and all(isinstance(block, FusedBottleneck) for block in blocks)
    assert [block.shortcut is None for block in blocks] == [False, False, True]
    assert all(block.shortcut is None or block.shortcut.bias is None for block in blocks)
    x = torch.randn(2, 3, 37, 40, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_stem_whose_norms_stay_is_left() -> None:
    model = RedNet((1,), widths=(16,), stem_channels=32, num_classes=5).eval()
    model.stem.norm3 = nn.GroupNorm(2, 32)
    fused, x = fuse(model), torch.randn(1, 3, 33, 32)
    assert not isinstance(fused.stem, FusedStem) and isinstance(fused.stages[0][0], FusedBottleneck)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)


def test_what_is_watched_behind_a_reduction_is_called() -> None:
    for name in ("activation", "norm"):
        layer = fuse(Involution2d(32, 3))
        assert layer._reduces_to_relu()
        getattr(layer, name).register_forward_hook(lambda *_: None)
        assert not layer._reduces_to_relu()


def test_move_bias_needs_a_place() -> None:
    source, target = make(), make(bias=False)
    move_bias(source, target)
    assert source.bias is not None and target.bias is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("arguments", [*WINDOWS, {"bias": False}], ids=str)
def test_one_kernel_on_a_gpu(arguments, memory_format, dtype) -> None:
    convolution = make(**arguments).to("cuda", dtype).to(memory_format=memory_format)
    x = torch.randn(2, 8, 13, 9, device="cuda", dtype=dtype).contiguous(memory_format=memory_format)
    expected = copy.deepcopy(convolution).double()(x.double())
    residual = torch.randn_like(expected).to(dtype).contiguous(memory_format=memory_format)
    assert is_one_kernel(convolution, x, residual)
    tolerance = {"rtol": 0, "atol": (1e-2 if dtype is torch.float32 else 8 * torch.finfo(dtype).eps)}  # TF32
    for other in (None, residual):
        sums = expected if other is None else expected + other.double()
        result = convolution_relu(convolution, x, other)
        assert result.dtype == dtype and result.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(result.double(), F.relu(sums), **tolerance)


@pytest.mark.gpu
def test_the_reduction_of_a_fused_layer_on_a_gpu() -> None:
    layer = (
        Involution2d(64, 7, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last).eval()
    )
    x = torch.randn(2, 64, 28, 28, device="cuda", dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    fused = fuse(layer)
    assert fused._reduces_to_relu() and is_one_kernel(fused.reduce, x)
    expected = copy.deepcopy(fused).double().hidden(x.double())
    torch.testing.assert_close(fused.hidden(x).double(), expected, rtol=0, atol=5e-2)
