"""RedNet: sizes, costs, features, freezing, checkpointing, and how it goes through the rest of PyTorch."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import operator
import pickle
from typing import Any

import pytest
import torch
from hooks import gradients_of, hooked
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import involution
from involution.models import FeaturePyramid, RedNet, create_model, fuse, list_models, rednet50, rednet_tiny
from involution.models.blocks import DropPath

# depth: blocks, parameters, published GFLOPs, multiply-adds of convolutions, involutions and head
PUBLISHED = {
    26: ((1, 2, 4, 1), 9_233_166, 1.73, 1.685),
    38: ((2, 3, 5, 2), 12_386_986, 2.22, 2.167),
    50: ((3, 4, 6, 3), 15_540_806, 2.71, 2.649),
    101: ((3, 4, 23, 3), 25_652_950, 4.74, 4.659),
    152: ((3, 8, 36, 3), 33_984_582, 6.79, 6.679),
}
EACH_DEPTH = pytest.mark.parametrize("depth", PUBLISHED)


def tiny(**arguments: Any) -> RedNet:
    """Small, with every kind of part: stride, dilation, shortcut, both sizes of the stem."""
    torch.manual_seed(0)
    settings = {"widths": (16, 32), "strides": (1, 2), "stem_channels": 32, "num_classes": 5, **arguments}
    return RedNet((2, 1), **settings)


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


class ElementwiseCounter(TorchDispatchMode):
    """Operations that are no multiply-adds: one for each element of an addition, a ReLU or a pool, two of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        name = function.overloadpacket.__name__
        if "batch_norm" in name:
            self.count += 2 * arguments[0].numel()
        elif name in ("add", "relu", "relu_", "clamp_min_", "max_pool2d_with_indices", "avg_pool2d", "mean"):
            self.count += arguments[0].numel()
        elif name == "convolution" and arguments[2] is not None:
            self.count += result.numel()
        return result


@EACH_DEPTH
def test_multiply_adds(depth):
    """Convolutions, involutions and head by themselves, and with the rest, which the published figures hold too."""
    *_, published, multiply_adds = PUBLISHED[depth]
    model = create_model(f"rednet{depth}", device="meta").eval()
    image = torch.empty(1, 3, 224, 224, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, ElementwiseCounter() as others:
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


# ---- features ----


def test_features_are_those_of_the_classifier():
    model, x = tiny().eval(), torch.randn(2, 3, 45, 39)
    maps = tiny(features_only=True)
    maps.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("head.")})
    first, second = maps.eval()(x)
    assert maps.feature_channels == [64, 128] and maps.feature_strides == [4, 8]
    assert first.shape == (2, 64, 12, 10) and second.shape == (2, 128, 6, 5)
    assert torch.equal(second, model.forward_features(x))
    assert torch.equal(model.forward_head(second), model(x))
    assert torch.equal(model.forward_head(second, pre_logits=True), second.mean((2, 3)))
    shallow = tiny(features_only=True, out_indices=(0,)).eval()
    shallow.load_state_dict({name: model.state_dict()[name] for name in shallow.state_dict()})
    assert len(shallow(x)) == 1 and torch.equal(shallow(x)[0], first)


def test_the_paper_s_maps():
    model = rednet50(features_only=True, device="meta")
    assert model.feature_channels == [256, 512, 1024, 2048] and model.feature_strides == [4, 8, 16, 32]
    maps = model(torch.empty(1, 3, 101, 224, device="meta"))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 26, 56), (512, 13, 28), (1024, 7, 14), (2048, 4, 7)]


def test_stages_behind_the_last_map_are_not_built():
    model = rednet50(features_only=True, out_indices=(0, 2), device="meta")
    assert len(model.stages) == 3 and model.feature_channels == [256, 1024]


def test_dilations_keep_the_size():
    model = tiny(strides=(1, 1), dilations=(1, 2), features_only=True)
    assert model.stages[1][0].involution.dilation == (2, 2)
    assert [tuple(m.shape[2:]) for m in model(torch.randn(1, 3, 32, 40))] == [(8, 10), (8, 10)]


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations", "firsts"),
    [
        (None, (1, 2, 3), (2, 1, 2), (2, 1, 2)),
        (24, (1, 2, 3), (2, 1, 2), (2, 1, 2)),
        (8, (1, 2, 1), (2, 1, 6), (2, 1, 2)),
        (4, (1, 1, 1), (2, 2, 12), (2, 1, 4)),
    ],
)
def test_output_strides(output_stride, strides, dilations, firsts):
    """Strides that are left out become dilations, from the first block on that reads more positions for it."""
    model = RedNet(
        (2, 2, 2),
        widths=(16, 16, 16),
        strides=(1, 2, 3),
        dilations=(2, 1, 2),
        output_stride=output_stride,
        features_only=True,
        device="meta",
    )
    blocks = [[block.involution for block in stage] for stage in model.stages]
    assert [first.stride for first, _ in blocks] == [(stride, stride) for stride in strides]
    assert [second.stride for _, second in blocks] == [(1, 1)] * 3
    assert [first.dilation for first, _ in blocks] == [(d, d) for d in firsts]
    assert [second.dilation for _, second in blocks] == [(d, d) for d in dilations]
    reductions = list(itertools.accumulate(strides, operator.mul, initial=4))[1:]
    assert model.feature_strides == reductions == [info["reduction"] for info in model.feature_info]
    maps = model(torch.empty(1, 3, 48, 96, device="meta"))
    assert [tuple(m.shape[2:]) for m in maps] == [(48 // r, 96 // r) for r in reductions]


def test_pooling():
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 37, 45, dtype=torch.float64), tiny().double().eval()
    features = model.forward_features(x)
    mean, most = features.flatten(2).mean(2), features.flatten(2).max(2).values
    expected = {
        "avg": mean,
        "max": most,
        "avgmax": (mean + most) / 2,
        "catavgmax": torch.cat((mean, most), 1),
    }
    for name, pooled in {**expected, "": features}.items():
        model.reset_classifier(0, name)
        assert model.global_pool == name
        torch.testing.assert_close(model(x), pooled)
        assert model.head_hidden_size == pooled.shape[1]
        made = tiny(num_classes=5, global_pool=name).double()
        assert made(x).shape == (2, 5, *pooled.shape[2:])
    model.reset_classifier(3, "catavgmax")
    assert model.head.in_features == 256 and model(x).shape == (2, 3)
    model.reset_classifier(4)  # which keeps the pooling
    torch.testing.assert_close(model(x), model.head(expected["catavgmax"]))
    assert not model.head.training
    # Without pooling every position gets scores, whose mean is that of the mean.
    model.reset_classifier(4, "")
    torch.testing.assert_close(model(x).mean((2, 3)), model.head(mean))


def test_intermediate_maps():
    model, x = tiny().eval(), torch.randn(2, 3, 37, 45)
    first = model.stages[0](model.stem(x))
    last = model.stages[1](first)
    chosen = {None: [first, last], 2: [first, last], 1: [last], (0,): [first], (-1, 0): [first, last]}
    for indices, expected in chosen.items():
        output, maps = model.forward_intermediates(x, indices, norm=True)
        torch.testing.assert_close([output, *maps], [last, *expected], rtol=0, atol=0)
        only = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        torch.testing.assert_close(only, expected, rtol=0, atol=0)
    called = []
    model.stages[1].register_forward_hook(lambda *call: called.append(call[2]))
    output, maps = model.forward_intermediates(x, (0,), stop_early=True)
    assert torch.equal(output, first) and torch.equal(maps[0], first) and not called
    model(x)
    assert torch.equal(called[0], last)  # a hook on a stage is called
    for indices in ((2,), (-3,), (), 0, 3):
        with pytest.raises(ValueError, match="numbers of stages from -2 to 1, or how many of the last"):
            model.forward_intermediates(x, indices)
    with pytest.raises(ValueError, match='output_fmt must be "NCHW"'):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_stages_that_no_map_needs_are_removed():
    model, x = tiny().eval(), torch.randn(2, 3, 37, 45)
    expected = model.forward_intermediates(x, (0,), intermediates_only=True)
    untouched = copy.deepcopy(model)
    assert untouched.prune_intermediate_layers((-1,), prune_head=False) == [1]
    assert torch.equal(untouched(x), model(x))
    assert untouched.prune_intermediate_layers(2) == [0, 1] and untouched.num_classes == 0
    assert model.prune_intermediate_layers((0,), prune_head=False) == [0]
    assert len(model.stages) == 1 and model.num_features == model.head_hidden_size == 64
    torch.testing.assert_close(model.forward_intermediates(x, (0,), intermediates_only=True), expected)
    assert torch.equal(model(x), expected[0]) and model.get_classifier() is None
    with pytest.raises(ValueError, match="no stages behind its last map"):
        tiny(features_only=True).prune_intermediate_layers()


def test_maps_counted_from_the_end():
    for indices, expected in (((-1,), (1,)), (1, (1,)), ((-2, -1), (0, 1)), (2, (0, 1))):
        assert tiny(features_only=True, out_indices=indices, device="meta").out_indices == expected


def test_a_new_head():
    model = tiny().double()
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 16, 16, dtype=torch.float64)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 16, 16, dtype=torch.float64)).shape == (2, 128)


@pytest.mark.parametrize("neck", ["convolution", "involution"])
def test_feature_pyramid(neck):
    torch.manual_seed(0)
    maps = [torch.randn(2, c, h, w) for c, h, w in ((8, 13, 9), (16, 7, 5), (32, 4, 3))]
    pyramid = FeaturePyramid((8, 16, 32), 32, neck=neck, extra_levels=2).eval()
    levels = pyramid(maps)
    shapes = [(2, 32, 13, 9), (2, 32, 7, 5), (2, 32, 4, 3), (2, 32, 2, 2), (2, 32, 1, 1)]
    assert [tuple(level.shape) for level in levels] == shapes
    # From the top down: each level is its own map and the one above it, repeated.
    above = pyramid.lateral[2](maps[2])
    assert torch.equal(levels[2], pyramid.output[2](above))
    rows, columns = (torch.arange(n) * m // n for n, m in ((7, 4), (5, 3)))
    middle = pyramid.lateral[1](maps[1]) + above[:, :, rows][..., columns]
    torch.testing.assert_close(levels[1], pyramid.output[1](middle))
    assert isinstance(pyramid.output[0], involution.Involution2d if neck == "involution" else nn.Conv2d)


def test_feature_pyramid_of_a_network():
    model = nn.Sequential(tiny(features_only=True), FeaturePyramid((64, 128), 32))
    levels = model(torch.randn(2, 3, 37, 41))
    assert [tuple(level.shape) for level in levels] == [(2, 32, 10, 11), (2, 32, 5, 6)]
    with pytest.raises(ValueError, match="takes 3 maps, but got 2"):
        FeaturePyramid((8, 16, 32))([torch.randn(1, 8, 4, 4)] * 2)
    with pytest.raises(ValueError, match='"convolution" or "involution"'):
        FeaturePyramid((8, 16), neck="attention")


# ---- training ----


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(x)
    output = output if isinstance(output, Tensor) else torch.cat([m.flatten() for m in output])
    output.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(drop_path=0.5),
        lambda: tiny(drop_path=0.5).eval(),
        lambda: nn.Sequential(
            tiny(features_only=True), FeaturePyramid((64, 128), 16, neck="involution", extra_levels=2)
        ),
    ],
    ids=["training", "evaluation", "pyramid"],
)
@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # of modules that return lists
def test_hooks_see_what_stays(make):
    model, x = make(), torch.randn(2, 3, 32, 32, requires_grad=True)
    results = []
    for run in (gradients_of, hooked):
        torch.manual_seed(1)
        results.append(run(copy.deepcopy(model), x))
    torch.testing.assert_close(results[1], results[0])


def test_extra_levels_are_not_parts_of_others():
    pyramid = FeaturePyramid((8,), 16, extra_levels=2)
    levels = pyramid([torch.randn(1, 8, 5, 7)])
    before = [level.detach().clone() for level in levels]
    levels[1].fill_(3.0)
    assert torch.equal(levels[0], before[0]) and torch.equal(levels[2], before[2])
    assert torch.equal(before[1], before[0][:, :, ::2, ::2])


class Stateful(nn.Module):
    """A norm of one's own, whose result depends on what it has seen before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.lerp_(x.detach().mean((0, 2, 3)), 1 / (1 + self.calls.item()))
        return (x - self.mean.clone()[:, None, None]) * self.weight[:, None, None]


NORMS = {
    "batch": "batch",
    "cumulative": lambda channels: nn.BatchNorm2d(channels, momentum=None),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
    "synchronised": nn.SyncBatchNorm,
    "stateful": Stateful,
}


@pytest.mark.parametrize(
    ("drop_path", "norm"), [(0.0, "batch"), (0.5, "batch"), *((0.0, name) for name in [*NORMS][1:])]
)
def test_gradient_checkpointing_changes_nothing_but_memory(drop_path, norm):
    model, x = tiny(drop_path=drop_path, norm_layer=NORMS[norm]), torch.randn(4, 3, 32, 32)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    results, saved = [], []
    for each in (model, other):
        sizes: list[int] = []
        pack = lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1]  # noqa: E731
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            results.append(step(each, x))
        saved.append(sum(sizes))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    buffers = zip(model.named_buffers(), other.named_buffers(), strict=True)
    for (name, a), (_, b) in buffers:  # running statistics count the batch once
        assert torch.equal(a, b), name
        assert b.any() or "mean" not in name, "the statistics were not taken"
    other.set_grad_checkpointing(False)
    assert not other.grad_checkpointing


def test_gradient_checkpointing_goes_back_twice():
    """A graph that is kept computes its blocks again each time."""
    model, x = tiny(norm_layer=Stateful), torch.randn(2, 3, 32, 32)
    model.set_grad_checkpointing()
    loss = model(x).square().mean()
    before = copy.deepcopy(dict(model.named_buffers()))
    weights = [block.norm1.weight for stage in model.stages for block in stage]
    first, second = (torch.autograd.grad(loss, weights, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)


def test_gradient_checkpointing_keeps_less():
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    kept = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen=seen) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        block = model.stages[1]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model(x)
        kept.append(len(seen))
        del output, block
    assert kept[1] < kept[0] / 2


def test_frozen_stages_stay_frozen():
    model, x = tiny(), torch.randn(4, 3, 32, 32)
    model.freeze_stages(1)
    before = copy.deepcopy(model.state_dict())
    model.train()
    gradients = step(model, x)
    assert not any(name.startswith(("stem.", "stages.0.")) for name in gradients)
    assert {name for name, _ in model.named_parameters() if name.startswith(("stages.1.", "head."))} == set(
        gradients
    )
    for name, tensor in model.state_dict().items():
        if name.startswith(("stem.", "stages.0.")):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.stages[1][0].norm1.running_mean, before["stages.1.0.norm1.running_mean"])

    model.freeze_stages(0)
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"stem"}
    model.freeze_stages(-1)
    assert len(step(model.train(), x)) == len(list(model.parameters()))
    assert all(module.training for module in model.modules())


def test_frozen_norms_stay_frozen():
    model, x = tiny(), torch.randn(4, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.weight, 0.5, 1)
    model.freeze_norms()
    model.train()
    expected = copy.deepcopy(model).eval()(x)
    assert torch.equal(model(x), expected)
    before = copy.deepcopy(model.state_dict())
    gradients = step(model, x)
    assert gradients and not any("norm" in name for name in gradients)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.freeze_stages(1)
    model.freeze_stages(-1)
    assert not any("norm" in name for name in step(model, x))
    model.freeze_stages(1)
    model.freeze_norms(False)
    assert not any(p.requires_grad for p in model.stages[0].parameters())
    assert all(p.requires_grad for p in model.stages[1].parameters())
    assert model.train().stages[1][0].norm1.training and not model.stages[0][0].norm1.training


def test_drop_path():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 1, 1)
    y = drop(x)
    kept = y[:, 0, 0, 0] > 0
    assert torch.equal(y[:, 0], y[:, 1])
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 4 / 3))
    assert torch.equal(drop.eval()(x), x)
    rates = [b.drop_path.probability if b.drop_path else 0 for s in tiny(drop_path=0.2).stages for b in s]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_dropout_is_in_the_head():
    model, x = tiny(dropout=0.5), torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    assert torch.equal(model.eval().forward_head(features), model.forward_head(features))


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


# ---- inference ----


@pytest.mark.parametrize("stem_kernel_size", [3, 7])
def test_fused_is_the_same_function(stem_kernel_size):
    model = tiny(stem_kernel_size=stem_kernel_size).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 2)
                module.weight *= torch.randn_like(module.weight).sign()
                module.bias.normal_(), module.running_mean.normal_()
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
