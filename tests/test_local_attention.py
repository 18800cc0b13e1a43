"""LocalAttention against its composition of plain operations, with masks and dropout."""

from __future__ import annotations

from typing import Any

import layer_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from layer_cases import ATTENTIONS, parameters, randomise, tuples
from torch import nn

from involution import (
    LocalAttention2d,
)

ATTENTION: list[tuple[int, int, Any, Any, Any, Any, dict[str, Any], tuple[int, ...]]] = [
    (2, 32, 7, 1, 1, 4, {}, (9, 8)),
    (2, 8, 4, 2, 1, 2, {"out_channels": 6}, (5, 6)),
    (2, 8, (3, 5), (2, 1), (2, 1), 1, {"relative_position_bias": False}, (7, 3)),
    (2, 4, 5, 1, 1, 4, {"bias": False}, (1, 2)),
    (2, 4, 2, 3, 3, 2, {}, (1, 5)),  # windows with no position in the map
    (1, 6, 9, 1, 1, 3, {}, (11,)),
    (3, 4, (2, 3, 3), 2, 1, 2, {}, (3, 4, 5)),
]


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_equals_the_composition(case):
    torch.manual_seed(0)
    axes, channels, kernel, stride, dilation, heads, keywords, space = case
    layer = randomise(
        ATTENTIONS[axes](channels, kernel, stride, dilation, heads, **keywords, dtype=torch.float64)
    )
    x = torch.randn(2, channels, *space, dtype=torch.float64, requires_grad=True)
    p = {name: t.requires_grad_() for name, t in parameters(layer).items()}
    sizes = (tuples(v, axes) for v in (kernel, stride, dilation))
    expected = oracle.local_attention(x, p, heads, *sizes)
    output = layer(x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    upstream = torch.randn_like(output)
    got = torch.autograd.grad(output, [x, *layer.parameters()], upstream)
    want = torch.autograd.grad(expected, [x, *(p[n] for n, _ in layer.named_parameters())], upstream)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["boolean", "numbers"])
@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_masked_attention_equals_the_composition(case, kind):
    torch.manual_seed(0)
    axes, channels, kernel, stride, dilation, heads, keywords, space = case
    layer = randomise(
        ATTENTIONS[axes](channels, kernel, stride, dilation, heads, **keywords, dtype=torch.float64)
    )
    x = torch.randn(2, channels, *space, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, *space) < 0.4
    if kind == "numbers":
        numbers = torch.randn(2, *space, dtype=torch.float64).masked_fill(mask, -torch.inf)
        mask = numbers.requires_grad_()
    p = {name: t.requires_grad_() for name, t in parameters(layer).items()}
    sizes = (tuples(v, axes) for v in (kernel, stride, dilation))
    expected = oracle.local_attention(x, p, heads, *sizes, mask)
    output = layer(x, mask)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-11)
    upstream = torch.randn_like(output)
    inputs = [x, mask] if kind == "numbers" else [x]
    got = torch.autograd.grad(output, [*inputs, *layer.parameters()], upstream)
    want = torch.autograd.grad(expected, [*inputs, *(p[n] for n, _ in layer.named_parameters())], upstream)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_padding_changes_nothing(axes, stride):
    """What comes of a map does not depend on how it was padded to the size of others."""
    torch.manual_seed(0)
    layer = randomise(ATTENTIONS[axes](8, 5, stride, num_heads=2, dtype=torch.float64))
    small, large = ((5, 4, 3)[:axes], (9, 6, 7)[:axes])
    x = torch.randn(2, 8, *large, dtype=torch.float64)
    inside = (..., *(slice(length) for length in small))
    mask = torch.ones(2, *large, dtype=torch.bool)
    mask[inside] = False
    kept = (..., *(slice(-(-length // stride)) for length in small))
    torch.testing.assert_close(layer(x, mask)[kept], layer(x[inside]), rtol=1e-12, atol=1e-12)
    unmasked = layer(x)[kept]
    assert (unmasked - layer(x[inside])).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["boolean", "numbers"])
def test_a_mask_means_what_it_means_to_multihead_attention(kind):
    """Windows that hold the whole sequence, so that both attend to all of it."""
    torch.manual_seed(0)
    layer = ATTENTIONS[1](8, 13, num_heads=2, relative_position_bias=False, dtype=torch.float64)
    other = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for name, tensor in randomise(layer).named_parameters():
            part, kind_of = name.split(".")
            if part == "project":
                getattr(other.out_proj, kind_of).copy_(tensor.reshape(getattr(other.out_proj, kind_of).shape))
            else:
                rows = {"query": 0, "key": 8, "value": 16}[part]
                target = other.in_proj_weight if kind_of == "weight" else other.in_proj_bias
                target[rows : rows + 8] = tensor.squeeze(-1) if kind_of == "weight" else tensor
    x, mask = torch.randn(3, 8, 7, dtype=torch.float64), torch.rand(3, 7) < 0.5
    mask[:, 3] = False
    if kind == "numbers":
        mask = torch.randn(3, 7, dtype=torch.float64).masked_fill(mask, -torch.inf)
    expected, _ = other(x.mT, x.mT, x.mT, key_padding_mask=mask)
    torch.testing.assert_close(layer(x, mask), expected.mT)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_queries_without_keys_give_the_bias_alone(dtype, axes):
    layer, space = randomise(ATTENTIONS[axes](8, 3, dtype=dtype)), (5, 4, 3)[:axes]
    x = torch.randn(2, 8, *space, dtype=dtype, requires_grad=True)
    everything = torch.ones(2, *space, dtype=torch.bool)
    too_low = torch.full((2, *space), -torch.inf if dtype == torch.float64 else -1e300, dtype=torch.float64)
    for mask in (everything, everything.to(dtype) * -torch.inf, too_low):
        output = layer(x, mask)
        torch.testing.assert_close(
            output, layer.project.bias.reshape(-1, *(1,) * axes).expand_as(output), rtol=0, atol=0
        )
        gradients = torch.autograd.grad(output.sum(), [x, *layer.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_masked_attention_under_autocast_and_in_graphs():
    torch.manual_seed(0)
    layer = ATTENTIONS[1](8, 5, num_heads=2)
    x, mask = torch.randn(2, 8, 9), torch.arange(9) >= torch.tensor([[7], [4]])
    expected = layer(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        for each in (mask, torch.zeros(2, 9).masked_fill(mask, -torch.inf)):
            torch.testing.assert_close(layer(x, each).float(), expected, rtol=0.05, atol=0.05)
    graphs = [torch.fx.symbolic_trace(layer), torch.jit.trace(layer, (x, mask), check_trace=False)]
    graphs += [torch.export.export(layer, (x, mask)).module()]
    graphs += [torch.compile(layer, backend="aot_eager", fullgraph=True)]
    for graph in graphs:
        torch.testing.assert_close(graph(x, mask), expected)
    torch.testing.assert_close(graphs[0](x), layer(x))


def test_attention_to_the_whole_map_is_global_attention():
    torch.manual_seed(0)
    layer = LocalAttention2d(8, 9, num_heads=2, relative_position_bias=False, dtype=torch.float64)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    q, k, v = (m(x).flatten(2).unflatten(1, (2, 4)).mT for m in (layer.query, layer.key, layer.value))
    expected = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2).unflatten(2, (5, 4))
    torch.testing.assert_close(layer(x), layer.project(expected))


def test_dropout_of_attention_acts_in_training_only():
    torch.manual_seed(0)
    layer, x = LocalAttention2d(8, 3, dropout=0.5), torch.randn(1, 8, 4, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
