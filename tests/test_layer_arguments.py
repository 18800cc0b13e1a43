"""Arguments of the layers: integers of every kind, groups, and sentences about wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import involution
from involution import (
    Involution1d,
    Involution2d,
    Involution3d,
    InvolutionTranspose1d,
    InvolutionTranspose2d,
    InvolutionTranspose3d,
    LocalAttention2d,
)


def integers(value, kind):
    """The same arguments with integers of another kind."""
    if isinstance(value, (tuple, list)):
        return type(value)(integers(each, kind) for each in value)
    if isinstance(value, dict):
        return {name: integers(each, kind) for name, each in value.items()}
    return kind(value) if type(value) is int else value


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array])
@pytest.mark.parametrize(
    ("layer", "arguments", "options"),
    [
        (involution.Involution1d, (32, 5, 2, 1, 2, 8, 2), {"out_channels": 16}),
        (involution.Involution2d, (32, (3, 5), (1, 2), (1, 2)), {"groups": 4, "group_channels": 8}),
        (involution.Involution3d, (8, 3), {}),
        (involution.InvolutionTranspose2d, (32, 4, 2, 1, 1), {"groups": 4}),
        (involution.InvolutionTranspose1d, (32, 4, 2), {"dilation": 2, "out_channels": 16}),
        (involution.LocalAttention2d, (32, 3, 2, 2, 4), {"out_channels": 16}),
        (involution.InvolutionLayer, (8, 32, 3, 2, 1), {"groups": 2}),
        (involution.AttentionModule, (32, 3, 2), {}),
        (involution.models.RedNet, ((1, 2),), {"widths": (16, 32), "num_classes": 5, "stem_channels": 8}),
        (involution.models.RedNet, ([1],), {"features_only": True, "out_indices": [0], "expansion": 2}),
        (involution.models.FeaturePyramid, ((8, 16), 32), {"extra_levels": 1, "neck": "involution"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_whatever_has_an_index_is_an_integer(layer, arguments, options, kind):
    plain = layer(*arguments, **options, device="meta")
    other = layer(*integers(arguments, kind), **integers(options, kind), device="meta")
    assert repr(other) == repr(plain)
    kept = {name: value for name, value in vars(plain).items() if not name.startswith("_")}
    assert {name: vars(other)[name] for name in kept} == kept
    assert all(type(vars(other)[name]) is type(value) for name, value in kept.items())
    shapes = {name: tensor.shape for name, tensor in plain.state_dict().items()}
    assert {name: tensor.shape for name, tensor in other.state_dict().items()} == shapes


@pytest.mark.parametrize(
    "make",
    [
        lambda: Involution2d(np.bool_(True)),
        lambda: Involution2d(32, groups=True),
        lambda: Involution2d(32, group_channels=True),
        lambda: Involution2d(32, reduction_ratio=np.float32(4)),
        lambda: InvolutionTranspose2d(32, out_channels=torch.tensor(True)),
        lambda: LocalAttention2d(32, num_heads=True),
        lambda: involution.models.RedNet((True,)),
        lambda: involution.models.RedNet((1,), num_classes=True),
        lambda: involution.models.RedNet((1,), stem_channels=8.0),
        lambda: involution.models.RedNet((1,), expansion=1.0),
        lambda: involution.models.RedNet((1,), device="meta").freeze_stages(True),
        lambda: involution.models.RedNet((1,), device="meta").reset_classifier(2.0),
        lambda: involution.models.FeaturePyramid((8,), extra_levels=True),
        lambda: involution.convert(nn.ReLU(), kernel_size=7.0),
        lambda: involution.convert(nn.ReLU(), groups=True),
    ],
)
def test_truth_values_and_floats_are_no_integers(make):
    with pytest.raises(TypeError, match="must be an integer, not"):
        make()


@pytest.mark.parametrize("layer", [Involution2d, InvolutionTranspose2d])
def test_groups_and_their_channels(layer):
    assert layer(64).groups == layer(64, group_channels=16).groups == 4
    assert layer(64, groups=2).groups == layer(64, group_channels=32).groups == 2
    assert layer(64, groups=2, group_channels=32).groups == 2  # they agree
    assert (
        layer(8).groups
        == layer(8, group_channels=16).groups
        == layer(8, groups=1, group_channels=16).groups
        == 1
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: Involution2d(24),
            ValueError,
            "24 channels cannot be divided into groups of group_channels=16",
        ),
        (lambda: Involution2d(24, groups=5), ValueError, "groups must divide the 24 channels, but it is 5"),
        (lambda: Involution2d(32, out_channels=24, groups=16), ValueError, "must divide the 24 channels"),
        (lambda: Involution2d(32, groups=2, group_channels=8), ValueError, "groups=2 and group_channels=8"),
        (lambda: Involution1d(64, groups=2, group_channels=16), ValueError, "do not agree on 64 channels"),
        (
            lambda: Involution2d(64, groups=2, group_channels=16),
            ValueError,
            "of which 32 are in each of 2 groups",
        ),
        (lambda: Involution3d(64, 3, groups=2, group_channels=16), ValueError, "do not agree on 64 channels"),
        (
            lambda: InvolutionTranspose1d(64, groups=8, group_channels=16),
            ValueError,
            "groups=8 and group_channels=16",
        ),
        (
            lambda: InvolutionTranspose2d(64, groups=2, group_channels=16),
            ValueError,
            "do not agree on 64 channels",
        ),
        (
            lambda: InvolutionTranspose3d(64, groups=2, group_channels=16),
            ValueError,
            "do not agree on 64 channels",
        ),
        (
            lambda: Involution2d(32, out_channels=64, groups=2, group_channels=16),
            ValueError,
            "do not agree on 64 channels",
        ),
        (
            lambda: Involution2d(64, groups=2, group_channels=0),
            ValueError,
            "group_channels must be at least 1",
        ),
        (lambda: Involution2d(0), ValueError, "channels must be at least 1, not 0"),
        (lambda: Involution2d(32.0), TypeError, "channels must be an integer"),
        (lambda: Involution2d(32, reduction_ratio=0), ValueError, "reduction_ratio must be at least 1"),
        (lambda: Involution2d(32, (3, 3, 3)), ValueError, "kernel_size must be one integer or 2"),
        (lambda: Involution2d(32, stride=0), ValueError, "stride must be at least 1"),
        (lambda: Involution2d(32, padding="full"), ValueError, '"same" or "valid"'),
        (lambda: Involution2d(32, kernel_normalizer="sigmoid"), ValueError, 'None, "softmax" or a callable'),
        (lambda: Involution2d(32, kernel_normalizer=3), TypeError, 'None, "softmax" or a callable'),
        (lambda: Involution2d(32, norm_layer="layer"), TypeError, "norm_layer must be .*, not 'layer'"),
        (
            lambda: Involution2d(32, norm_layer=nn.BatchNorm2d(8)),
            TypeError,
            r"norm_layer must be .* a class or callable .* not the module BatchNorm2d\(8,.* give its class",
        ),
        (
            lambda: Involution1d(32, norm_layer=str),
            TypeError,
            "norm_layer must make a module, but .* made '8'",
        ),
        (
            lambda: InvolutionTranspose2d(32, activation_layer=nn.ReLU()),
            TypeError,
            r"activation_layer must be .* a class or callable .* not the module ReLU\(\),.* give its class",
        ),
        (
            lambda: Involution2d(32, activation_layer="relu"),
            TypeError,
            "activation_layer must be .* not 'relu'",
        ),
        (lambda: Involution2d(32, activation_layer=dict), TypeError, "activation_layer must make a module"),
        (
            lambda: Involution2d(32, kernel_normalizer=nn.Softmax),
            TypeError,
            "kernel_normalizer must be .* not the class Softmax; give an instance of it",
        ),
        (lambda: Involution2d(32, dtype=torch.int32), TypeError, "floating-point"),
        (lambda: Involution2d(32)(torch.randn(1, 16, 5, 5)), ValueError, r"\(batch, 32, height, width\)"),
        (lambda: Involution1d(32)(torch.randn(1, 32, 5, 5)), ValueError, r"\(batch, 32, length\)"),
        (
            lambda: Involution2d(32, kernel_normalizer=lambda points: points.sum(2))(
                torch.randn(1, 32, 5, 5)
            ),
            ValueError,
            "must keep the shape",
        ),
        (lambda: InvolutionTranspose2d(32, 2, 3), ValueError, "spans less than the stride"),
        (lambda: InvolutionTranspose2d(32, output_padding=1), ValueError, "fixes the output size"),
        (lambda: LocalAttention2d(32, num_heads=5), ValueError, "num_heads must divide the 32 channels"),
        (
            lambda: LocalAttention2d(32)(torch.randn(2, 32, 5, 6), torch.zeros(2, 6, 5)),
            ValueError,
            r"key_padding_mask must have shape \(2, 5, 6\), .* shape is \(2, 6, 5\)",
        ),
        (
            lambda: LocalAttention2d(32)(torch.randn(2, 32, 5, 6), torch.zeros(2, 5, 6, dtype=torch.uint8)),
            TypeError,
            r"must be a boolean or floating-point tensor, not torch\.uint8",
        ),
        (
            lambda: LocalAttention2d(32)(torch.randn(2, 32, 5, 6), [True]),
            TypeError,
            "must be a boolean or floating-point tensor, not list",
        ),
        (
            lambda: LocalAttention2d(32)(torch.randn(2, 32, 5, 6), torch.zeros(2, 5, 6, device="meta")),
            ValueError,
            "on the device of the input, cpu, but it is on meta",
        ),
    ],
)
def test_wrong_arguments_are_explained(make, error, message):
    with pytest.raises(error, match=message):
        make()
