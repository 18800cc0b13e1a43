"""RedNet's feature maps, strides, poolings and heads, and the feature pyramid."""

from __future__ import annotations

import copy
import itertools
import operator

import pytest
import torch
from small_models import tiny
from torch import nn

import involution
from involution.models import FeaturePyramid, RedNet, rednet50

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
