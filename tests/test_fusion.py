"""fuse: norms merged into convolutions for inference."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import randomise_norms, tiny
from torch import Tensor, nn
from torch.nn.utils import prune

import involution
from involution.models import fuse

# ---- inference ----


@pytest.mark.parametrize("stem_kernel_size", [3, 7])
def test_fused_is_the_same_function(stem_kernel_size):
    model = tiny(stem_kernel_size=stem_kernel_size).double()
    randomise_norms(model)
    x = torch.randn(2, 3, 45, 32, dtype=torch.float64)
    before, fused = copy.deepcopy(model.state_dict()), fuse(model)
    torch.testing.assert_close(fused(x), copy.deepcopy(model).eval()(x), rtol=1e-10, atol=1e-10)
    assert model.training and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    norms = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    blocks = ("stem", *(f"stages.{stage}.{block}" for stage, block in ((0, 0), (0, 1), (1, 0))))
    assert norms == [f"{block}.involution.epilogue.norm" for block in blocks]
    assert not any(parameter.requires_grad for parameter in fused.parameters())


class Scaled(nn.Module):
    """A parametrisation; in training another one."""

    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * (3 if self.training else 2)


def parametrise(module: nn.Module, name: str) -> None:
    """In every way of ``torch.nn.utils.parametrize``: one original tensor and two, weights, biases and norms."""
    convolution = module.get_submodule(name)
    if name.startswith("stem"):
        nn.utils.parametrizations.weight_norm(convolution)
    elif "conv1" in name:
        nn.utils.parametrizations.spectral_norm(convolution)
    else:
        nn.utils.parametrize.register_parametrization(convolution, "weight", Scaled())


def test_parametrised_convolutions_are_fused():
    model = tiny(widths=(16, 32)).double()
    model(torch.randn(4, 3, 32, 32, dtype=torch.float64))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            parametrise(model, name)
    nn.utils.parametrize.register_parametrization(model.stem.norm1, "weight", Scaled())
    model.stages[0][1].norm3.weight.data.normal_()  # which begins at zero
    x = torch.randn(2, 3, 29, 32, dtype=torch.float64)
    fused = fuse(model)
    torch.testing.assert_close(fused(x), copy.deepcopy(model).eval()(x), rtol=1e-10, atol=1e-10)
    assert nn.utils.parametrize.is_parametrized(model.stem.conv1)
    assert not nn.utils.parametrize.is_parametrized(fused.stem.conv1)
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Involution", "InvolutionTranspose"])
def test_layers_with_a_parametrised_convolution_are_fused(kind, axes):
    layer = getattr(involution, f"{kind}{axes}d")(32, 3, dtype=torch.float64)
    x = torch.randn(2, 32, *(5, 4, 3)[:axes], dtype=torch.float64)
    layer(x)
    nn.utils.parametrizations.weight_norm(layer.reduce)
    nn.utils.parametrize.register_parametrization(layer.span, "weight", Scaled())
    torch.testing.assert_close(fuse(layer)(x), layer.eval()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm:FutureWarning")
def test_weights_that_hooks_make_are_not_fused():
    for apply in (nn.utils.weight_norm, lambda conv: prune.random_unstructured(conv, "weight", 0.5)):
        layer = involution.Involution2d(32)
        apply(layer.reduce)
        with pytest.raises(
            ValueError, match=r"norm into Involution2d\.reduce, whose weight is made by a hook"
        ):
            fuse(layer)
    layer.reduce = nn.Sequential(nn.Conv2d(32, 8, 1))
    with pytest.raises(ValueError, match="which is a Sequential and no convolution"):
        fuse(layer)


def test_other_norms_are_not_fused():
    model = tiny(norm_layer=lambda channels: nn.GroupNorm(1, channels)).eval()
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(fuse(model)(x), model(x))
