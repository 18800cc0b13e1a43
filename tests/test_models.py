"""RedNet: sizes, costs, building, and how it goes through the rest of PyTorch."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import pytest
import torch
from elementwise_costs import ElementwiseCosts
from small_models import step, tiny
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import involution
from involution.models import RedNet, create_model, list_models, rednet50, rednet_tiny

# depth: blocks, parameters, published GFLOPs, multiply-adds of convolutions, involutions and head
PUBLISHED = {
    26: ((1, 2, 4, 1), 9_233_166, 1.73, 1.685),
    38: ((2, 3, 5, 2), 12_386_986, 2.22, 2.167),
    50: ((3, 4, 6, 3), 15_540_806, 2.71, 2.649),
    101: ((3, 4, 23, 3), 25_652_950, 4.74, 4.659),
    152: ((3, 8, 36, 3), 33_984_582, 6.79, 6.679),
}


EACH_DEPTH = pytest.mark.parametrize("depth", PUBLISHED)


# ---- sizes and costs ----


@EACH_DEPTH
def test_parameters(depth):
    blocks, expected, *_ = PUBLISHED[depth]
    model = create_model(f"rednet{depth}", device="meta")
    assert tuple(len(stage) for stage in model.stages) == blocks
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    backbone = create_model(f"rednet{depth}", stem_kernel_size=7, features_only=True, device="meta")
    head = 2048 * 1000 + 1000
    assert sum(parameter.numel() for parameter in backbone.parameters()) == expected + 720 - head


@EACH_DEPTH
def test_multiply_adds(depth):
    """Convolutions, involutions and head by themselves, and with the rest, which the published figures hold too."""
    *_, published, multiply_adds = PUBLISHED[depth]
    model = create_model(f"rednet{depth}", device="meta").eval()
    image = torch.empty(1, 3, 224, 224, device="meta")
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        ElementwiseCosts("add", "clamp_min_", "mean") as others,
    ):
        model(image)
    counted = counter.get_total_flops() / 2
    assert counted / 1e9 == pytest.approx(multiply_adds, rel=2e-4)
    assert (counted + others.count) / 1e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_flops_of_the_operations(axes):
    x, size, out = torch.randn(2, 6, *(7,) * axes), (3,) * axes, (4,) * axes
    w, y = torch.randn(2, 3, *size, *out), torch.randn(2, 6, *out)
    expected = 2 * 2 * 6 * 3**axes * 4**axes
    operations = [
        lambda: getattr(involution, f"involution{axes}d")(x, w, stride=2, padding=1),
        lambda: getattr(involution, f"involution_transpose{axes}d")(y, w, stride=2, padding=1),
        lambda: getattr(involution, f"local_correlation{axes}d")(y, x, 3, 3, stride=2, padding=1),
    ]
    for operation in operations:
        with FlopCounterMode(display=False) as counter:
            operation()
        assert counter.get_total_flops() == expected


# ---- building ----


def test_names():
    assert list_models() == [*(f"rednet{depth}" for depth in PUBLISHED), "rednet_tiny"]
    with pytest.raises(ValueError, match="no model 'rednet51'; there are rednet26, "):
        create_model("rednet51")
    assert create_model("rednet26", num_classes=7, in_channels=1, device="meta").head.out_features == 7


@EACH_DEPTH
def test_arguments_of_the_published_networks(depth):
    parameters = inspect.signature(getattr(involution.models, f"rednet{depth}")).parameters
    expected = {
        "num_classes": 1000,
        "in_channels": 3,
        "stem_kernel_size": 3,
        "features_only": False,
        "out_indices": (0, 1, 2, 3),
        "drop_path": 0.0,
    }
    assert {name: parameters[name].default for name in expected} == expected
    assert list(parameters)[:6] == list(expected)


def test_initialisation():
    torch.manual_seed(0)
    model = rednet50()
    for stage in model.stages:
        for block in stage:
            assert not block.norm3.weight.any() and torch.equal(
                block.norm2.weight, torch.ones_like(block.norm2.weight)
            )
    block = model.stages[3][1]
    for weight in (
        block.conv1.weight,
        block.conv2.weight,
        block.involution.span.weight,
        model.stem.conv2.weight,
    ):
        assert weight.std().item() == pytest.approx((2 / (weight[:, 0].numel())) ** 0.5, rel=0.03)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not model.head.bias.any()
    # Each block is its shortcut at first.
    x = torch.randn(1, 2048, 3, 2).relu()
    assert torch.equal(block.eval()(x), x)


def test_a_small_network_for_small_images():
    model = rednet_tiny(in_channels=1)
    assert 100_000 < sum(parameter.numel() for parameter in model.parameters()) < 500_000
    for size in ((8, 8), (28, 28), (32, 32), (1, 5)):
        assert model.eval()(torch.randn(2, 1, *size)).shape == (2, 10)
    maps = rednet_tiny(features_only=True, out_indices=(0, 2))(torch.randn(2, 3, 8, 9))
    assert [tuple(m.shape) for m in maps] == [(2, 64, 8, 9), (2, 256, 2, 3)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(stem="large"), 'stem must be "imagenet" or "small"'),
        (lambda: RedNet(()), "at least one stage"),
        (lambda: RedNet((1, 1), widths=(16,)), "widths must have a number for each of the 2 stages"),
        (lambda: RedNet((1, 0)), "blocks must be at least 1"),
        (lambda: tiny(features_only=True, out_indices=(0, 2)), "numbers of stages from 0 to 1"),
        (lambda: tiny(features_only=True, out_indices=(1, 0)), r"rising numbers"),
        (lambda: tiny(features_only=True, out_indices=()), r"rising numbers"),
        (lambda: tiny(drop_path=1.0), r"in \[0, 1\)"),
        (lambda: tiny(stem_channels=33), "even"),
        (lambda: tiny(norm_layer=None), "does not train without"),
        (lambda: tiny(num_classes=-1), "num_classes must be at least 0"),
        (lambda: tiny()(torch.randn(1, 4, 8, 8)), r"\(batch, 3, height, width\)"),
        (lambda: tiny().freeze_stages(3), "from -1 to 2, not 3"),
        (lambda: tiny(features_only=True).reset_classifier(3), "no head to reset"),
        (lambda: tiny(features_only=True, out_indices=3), "how many of the last, but it is 3"),
        (lambda: tiny(output_stride=16), r"output_stride must be one of \[4, 8\].*not 16"),
        (lambda: tiny(global_pool="mean"), "one of 'avg', 'max', 'avgmax', 'catavgmax', '', not 'mean'"),
    ],
)
def test_wrong_arguments_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_norm_is_given_by_its_class():
    assert type(tiny(norm_layer=nn.SyncBatchNorm).stages[0][0].involution.norm) is nn.SyncBatchNorm
    with pytest.raises(TypeError, match=r"norm_layer must be .* not the module BatchNorm2d"):
        tiny(norm_layer=nn.BatchNorm2d(16))


# ---- the rest of PyTorch ----


def test_copies_and_pickles():
    model, x = tiny().eval(), torch.randn(1, 3, 16, 16)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_channels_last_and_half_types(dtype):
    model, x = tiny().eval(), torch.randn(2, 3, 33, 40)
    exact = copy.deepcopy(model).double()(x.double())
    for layout in (torch.contiguous_format, torch.channels_last):
        output = copy.deepcopy(model).to(dtype, memory_format=layout)(x.to(dtype, memory_format=layout))
        assert output.dtype == dtype
        assert (output - exact).abs().max() <= 64 * torch.finfo(dtype).eps * exact.abs().max()


def test_every_map_of_a_channels_last_network_is_channels_last():
    model = tiny().eval().to(memory_format=torch.channels_last)
    shapes = []

    def check(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        shapes.append(output.shape)
        assert output.is_contiguous(memory_format=torch.channels_last), module

    for module in model.modules():
        if isinstance(module, nn.Conv2d | involution.Involution2d | nn.BatchNorm2d):
            module.register_forward_hook(check)
    model(torch.randn(2, 3, 33, 40).contiguous(memory_format=torch.channels_last))
    assert len(shapes) > 20


def test_autocast_trains():
    model, x = tiny(), torch.randn(4, 3, 32, 32)
    exact = step(copy.deepcopy(model), x)
    with torch.autocast("cpu", torch.bfloat16):
        gradients = step(model, x)
    assert gradients.keys() == exact.keys()
    total = math.sqrt(sum((gradients[n] - exact[n]).square().sum() for n in exact))
    assert total < 0.2 * math.sqrt(sum(g.square().sum() for g in exact.values()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compile_a_training_step(checkpointing):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = RedNet((1,), widths=(16,), stem_channels=32, num_classes=5), torch.randn(4, 3, 32, 32)
    model.set_grad_checkpointing(checkpointing)
    expected = step(copy.deepcopy(model), x)
    compiled = copy.deepcopy(model)
    compiled.forward = torch.compile(compiled.forward, fullgraph=True, backend="aot_eager")
    gradients = step(compiled, x)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_export_with_any_size():
    model, dynamic = tiny().eval(), torch.export.Dim.DYNAMIC
    program = torch.export.export(
        model, (torch.randn(2, 3, 37, 45),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    for shape in ((2, 3, 37, 45), (3, 3, 64, 33), (5, 3, 18, 100)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)
