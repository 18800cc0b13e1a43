"""involution.convert on networks written with plain modules, and the example that uses it."""

from __future__ import annotations

import copy
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.resnet import ResNet
from involution import Involution1d, Involution2d, Involution3d, convert

ROOT = Path(__file__).resolve().parents[1]


def test_a_resnet():
    torch.manual_seed(0)
    model = ResNet(blocks=(1, 2, 1, 1)).eval()
    x = torch.randn(1, 3, 70, 64)
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    converted, report = convert(model)
    assert len(report.replaced) == 5 and all(name.endswith(".conv2") for name in report.replaced)
    assert "has another kernel size than 3" in report.left["conv1"]
    assert len(report.left) == 1 + 2 * 5 + 4
    assert not any(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in converted.modules())
    assert converted.layers[1][0].conv2.stride == (2, 2)
    assert converted(x).shape == (1, 1000) and not converted.training
    assert [m.shape for m in maps(converted, x)] == [m.shape for m in maps(model, x)]
    # The network itself is untouched.
    assert torch.equal(model(x), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, converted)]
    assert report.parameters == tuple(counts) and counts[1] < counts[0]
    assert "5 convolutions replaced, 15 left." in str(report)
    assert "replaced layers.1.0.conv2: Conv2d(128, 128, kernel_size=(3, 3), stride=(2, 2)" in str(report)
    converted.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


def maps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    found = []
    handles = [m.register_forward_hook(lambda m, i, o: found.append(o)) for m in model.layers]
    model(x)
    for handle in handles:
        handle.remove()
    return found


CONVOLUTIONS = [
    nn.Conv2d(32, 32, 3),
    nn.Conv2d(32, 32, 3, padding=1),
    nn.Conv2d(32, 48, 3, 2, 1),
    nn.Conv2d(32, 16, 3, (1, 3), (0, 2), (2, 1)),
    nn.Conv2d(16, 8, 3, padding="same", dilation=2),
    nn.Conv2d(16, 32, 3, padding="valid"),
    nn.Conv2d(32, 32, 3, padding=5),
    nn.Conv1d(32, 32, 3, 2, 1),
    nn.Conv3d(16, 32, 3, 2, 1),
]


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=str)
def test_the_output_keeps_its_size(convolution, kernel_size):
    axes = convolution.weight.dim() - 2
    x = torch.randn(2, convolution.in_channels, *(13, 10, 7)[:axes])
    layer, report = convert(convolution, kernel_size=kernel_size)
    if kernel_size == 1 and convolution.padding in ("valid", (0, 0), (0, 2)):  # it would have to be cropped
        assert (
            layer.weight.shape == convolution.weight.shape and "larger than the involution" in report.left[""]
        )
        return
    assert type(layer) is (Involution1d, Involution2d, Involution3d)[axes - 1]
    assert layer.kernel_size == (kernel_size,) * axes
    assert layer(x).shape == convolution(x).shape
    assert (layer.project is None) == (convolution.in_channels == convolution.out_channels)


@pytest.mark.parametrize(
    ("convolution", "why"),
    [
        (nn.Conv2d(3, 32, 3), "3 input channels, fewer than the 16"),
        (nn.Conv2d(32, 40, 3), "40 output channels, which cannot be divided into groups of 16"),
        (nn.Conv2d(32, 32, 3, groups=32), "32 groups"),
        (nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"), "pads by 'reflect'"),
        (nn.Conv2d(32, 32, 5), "another kernel size than 3"),
        (nn.Conv2d(32, 32, (3, 1)), "another kernel size than 3"),
        (nn.ConvTranspose2d(32, 32, 3), "is transposed"),
        (nn.LazyConv2d(32, 3), "LazyConv2d is a subclass"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 3)), "ParametrizedConv2d is a subclass"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_left_and_why(convolution, why):
    model, report = convert(nn.Sequential(convolution, nn.ReLU()))
    assert not report.replaced and why in report.left["0"]
    assert type(model[0]) is type(convolution)
    assert f"left 0: {report.left['0']}" in str(report)


def test_choices():
    model = nn.Sequential(
        nn.Conv2d(32, 40, 3), nn.Conv2d(40, 40, 5, padding=2), nn.Conv2d(40, 40, 3, padding=1)
    )
    converted, report = convert(
        model,
        kernel_size=5,
        replaces=(3, 5),
        group_channels=8,
        reduction_ratio=2,
        select=lambda name, found: name != "0",
        kernel_normalizer="softmax",
        norm_layer=None,
    )
    assert list(report.replaced) == ["1", "2"] and "was not selected" in report.left["0"]
    for layer in converted[1:]:
        assert (layer.kernel_size, layer.groups, layer.norm) == ((5, 5), 5, None)
        assert layer.kernel_normalizer == "softmax" and layer.reduce.out_channels == 20
    with pytest.raises(ValueError, match="kernel of size 4 cannot replace one of size 3"):
        convert(model, kernel_size=4)


def test_a_number_of_groups_takes_the_place_of_their_channels():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 15, 3), nn.Conv2d(6, 18, 3))
    converted, report = convert(model, groups=2)
    assert list(report.replaced) == ["0"] and converted[0].groups == 2
    assert "15 output channels, which cannot be divided into 2 groups" in report.left["1"]
    assert "6 input channels, fewer than the 9 that share a kernel" in report.left["2"]
    assert convert(model, groups=2, group_channels=4).module[0].groups == 2
    with pytest.raises(ValueError, match="groups=2 and group_channels=8 do not agree on 8 channels"):
        convert(model, groups=2, group_channels=8)


def test_in_place_and_shared_modules():
    shared = nn.Conv2d(32, 32, 3, padding=1)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared})
    copied, _ = convert(model)
    assert copied is not model and model["b"] is shared
    converted, report = convert(model, in_place=True)
    assert converted is model and len(report.replaced) == 1
    assert isinstance(model["b"], Involution2d) and model["a"][0] is model["b"]


def test_a_failure_changes_nothing():
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3))
    with pytest.raises(ValueError, match="kernel_normalizer"):
        convert(model, in_place=True, kernel_normalizer="none")
    assert all(type(each) is nn.Conv2d for each in model)


def test_device_dtype_and_mode():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, device="meta", dtype=torch.float64)).eval()
    converted, _ = convert(model)
    assert all(p.is_meta and p.dtype == torch.float64 for p in converted.parameters())
    assert not any(module.training for module in converted.modules())


def test_the_example(monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="the example's digits come with scikit-learn")
    monkeypatch.setattr(sys, "argv", ["convert.py", "--epochs", "1"])
    runpy.run_path(str(ROOT / "examples" / "convert.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "4 convolutions replaced, 2 left." in printed
    assert printed.count("test accuracy") == 2
