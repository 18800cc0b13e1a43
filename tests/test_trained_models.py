"""What is done with a trained model: half precision, memory formats, copies, files."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import involution
from involution.models import RedNet

MODELS: dict[str, Callable[[], nn.Module]] = {
    "Involution1d": lambda: involution.Involution1d(6, 3, 2, groups=2, reduction_ratio=2),
    "Involution2d": lambda: involution.Involution2d(6, (3, 4), 2, groups=2, reduction_ratio=2),
    "Involution3d": lambda: involution.Involution3d(6, 3, groups=2, kernel_normalizer="softmax"),
    "InvolutionTranspose2d": lambda: involution.InvolutionTranspose2d(6, 3, 2, groups=2, reduction_ratio=2),
    "LocalAttention2d": lambda: involution.LocalAttention2d(6, 3, num_heads=2),
    "InvolutionLayer": lambda: involution.InvolutionLayer(6, 8, 3, padding=1, groups=2),
    "RedNet": lambda: RedNet(
        (1, 1), widths=(16, 32), strides=(1, 2), stem="small", in_channels=6, num_classes=5
    ),
}
EACH_MODEL = pytest.mark.parametrize("name", MODELS)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode whose running statistics are not those it began with, and an input."""
    torch.manual_seed(0)
    model = MODELS[name]()
    axes = {"1d": 1, "3d": 3}.get(name[-2:], 2)
    x = torch.randn(4, 6, *(9, 8, 5)[:axes])
    with torch.no_grad():
        model(x)
    return model.eval(), x


@EACH_MODEL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_half_inference(name: str, dtype: torch.dtype, device: str) -> None:
    """`model.half()` and `model.bfloat16()`: near the same weights' float64, as far as the type's digits go."""
    model, x = made(name)
    x = x.to(dtype)
    half = (model.half() if dtype == torch.float16 else model.bfloat16()).to(device)
    exact = copy.deepcopy(model).cpu().double()
    with torch.inference_mode():
        result, expected = half(x.to(device)), exact(x.double())
    assert result.dtype == dtype
    # A few roundings in a row, each relative to its own largest value.
    tolerance = 16 * torch.finfo(dtype).eps * expected.abs().max()
    assert (result.double().cpu() - expected).abs().max() <= tolerance


@EACH_MODEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last(name: str, dtype: torch.dtype) -> None:
    """The same numbers, in the memory format of the input, forward and backward."""
    model, x = made(name)
    if x.dim() not in (4, 5):
        pytest.skip("torch has a channels_last format for two and three axes alone")
    channels_last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    model, x = model.to(dtype), x.to(dtype)
    expected = model(x)
    model = model.to(memory_format=channels_last)
    moved = x.to(memory_format=channels_last).requires_grad_()
    result = model(moved)
    tolerance = 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(result, expected, rtol=0, atol=tolerance)
    if result.dim() == x.dim():
        assert result.is_contiguous(memory_format=channels_last)
    result.float().square().sum().backward()
    assert moved.grad is not None and moved.grad.is_contiguous(memory_format=channels_last)


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model: nn.Module) -> nn.Module:
    """A state_dict through a file that is read with `weights_only=True`, into a model made anew."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return _filled(model, torch.load(file, weights_only=True))


def by_safetensors(model: nn.Module) -> nn.Module:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    return _filled(model, safetensors.load(safetensors.save(model.state_dict())))


def _filled(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    name = next(name for name, make in MODELS.items() if type(make()) is type(model))
    torch.manual_seed(1)
    other = MODELS[name]().eval()
    assert any(not torch.equal(t, state[key]) for key, t in other.state_dict().items())
    other.load_state_dict(state, strict=True)
    return other


@EACH_MODEL
@pytest.mark.parametrize("way", [by_pickle, copy.deepcopy, by_torch_save, by_safetensors])
def test_copies_and_files(name: str, way: Callable[[nn.Module], nn.Module]) -> None:
    """The copy computes the same, trains by itself, and has the same keys and words."""
    model, x = made(name)
    other = way(model)
    assert str(other) == str(model)
    assert list(other.state_dict()) == list(model.state_dict())
    expected = model(x)
    assert torch.equal(other(x), expected)
    other(x).square().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(x), expected)


@EACH_MODEL
def test_safetensors_of_a_model(name: str, tmp_path: Path) -> None:
    """Its own way to files, which refuses parameters that share memory."""
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, x = made(name)
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    torch.manual_seed(1)
    other = MODELS[name]().eval()
    assert safetensors.load_model(other, str(tmp_path / "model.safetensors")) == (set(), [])
    assert torch.equal(other(x), model(x))
