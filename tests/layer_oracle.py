"""The layers written out in plain PyTorch, from their state_dict alone, in one, two and three dimensions.

Nothing here uses the package: windows are views of a padded tensor, means are sums over counts, 1x1 convolutions
are matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Parameters = dict[str, Tensor]


def windows(x: Tensor, kernel_size: Sequence[int], stride, front, dilation, out: Sequence[int]) -> Tensor:
    """``(B, C, *Out, *K)``: every output's neighbourhood, with zeros outside of the map."""
    for axis in range(x.dim() - 2):
        k, s, f, d, n = kernel_size[axis], stride[axis], front[axis], dilation[axis], out[axis]
        reach = d * (k - 1) + 1
        last = (n - 1) * s + reach - f  # one past the last position that a window holds
        length = x.shape[2 + axis]
        moved = x.movedim(2 + axis, -1)
        moved = F.pad(moved, (f, max(0, last - length)))
        x = moved.movedim(-1, 2 + axis)
        x = x.unfold(2 + axis, reach, s)[..., ::d].narrow(2 + axis, 0, n)
    return x


def mean_of_blocks(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The mean of every block of ``stride`` positions, of what there is of it at the end."""
    for axis, s in enumerate(stride):
        parts = x.split(s, 2 + axis)
        x = torch.stack([part.mean(2 + axis) for part in parts], 2 + axis)
    return x


def pointwise(x: Tensor, p: Parameters, name: str) -> Tensor:
    """A 1x1 convolution."""
    weight, bias = p[f"{name}.weight"].flatten(1), p.get(f"{name}.bias")
    y = torch.einsum("oc,bc...->bo...", weight, x)
    return y if bias is None else y + bias.reshape(-1, *(1,) * (x.dim() - 2))


def batch_norm(x: Tensor, p: Parameters, name: str, training: bool) -> Tensor:
    """Batch normalisation by the batch's own statistics or by the running ones."""
    axes = [0, *range(2, x.dim())]
    mean = x.mean(axes) if training else p[f"{name}.running_mean"]
    variance = x.var(axes, unbiased=False) if training else p[f"{name}.running_var"]
    shape = (-1, *(1,) * (x.dim() - 2))
    scale = p[f"{name}.weight"] / (variance + 1e-5).sqrt()
    return (x - mean.reshape(shape)) * scale.reshape(shape) + p[f"{name}.bias"].reshape(shape)


def make_kernels(
    x: Tensor,
    p: Parameters,
    groups: int,
    kernel_size: Sequence[int],
    training: bool,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``(B, G, prod(K), *space)``: the kernels made from the features there."""
    hidden = pointwise(x, p, "reduce")
    if "norm.weight" in p:
        hidden = batch_norm(hidden, p, "norm", training)
    kernels = pointwise(hidden.clamp(min=0), p, "span").unflatten(1, (groups, -1))
    return kernels if normalise is None else normalise(kernels)


def weigh(values: Tensor, kernels: Tensor) -> Tensor:
    """``values`` as windows ``(B, C, *Out, *K)``, ``kernels`` as ``(B, G, prod(K), *Out)``."""
    axes = kernels.dim() - 3
    grouped = values.flatten(2 + axes).unflatten(1, (kernels.shape[1], -1))
    return torch.einsum("bgk...,bgc...k->bgc...", kernels, grouped).flatten(1, 2)


def involution_layer(
    x: Tensor,
    p: Parameters,
    groups: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    training: bool,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The involution layer: pool, reduce, norm, ReLU, span, involution."""
    same = [d * (k - 1) // 2 for k, d in zip(kernel_size, dilation, strict=True)]
    centres, front, out = x, same, []
    if padding != "same":
        front = [0] * len(same) if padding == "valid" else list(padding)
        for axis, (k, d) in enumerate(zip(kernel_size, dilation, strict=True)):
            # The features at the windows' centres: from the first to the last window with stride 1.
            total = x.shape[2 + axis] + 2 * front[axis] - d * (k - 1)
            index = torch.arange(total) - front[axis] + same[axis]
            there = (index >= 0) & (index < x.shape[2 + axis])
            taken = centres.index_select(2 + axis, index.clamp(0, x.shape[2 + axis] - 1)).movedim(
                2 + axis, -1
            )
            centres = (taken * there).movedim(-1, 2 + axis)
    kernels = make_kernels(mean_of_blocks(centres, stride), p, groups, kernel_size, training, normalise)
    out = kernels.shape[3:]
    values = pointwise(x, p, "project") if "project.weight" in p else x
    return weigh(windows(values, kernel_size, stride, front, dilation, out), kernels)


def transposed(values: Tensor, kernels: Tensor, kernel_size, stride, front, dilation, size) -> Tensor:
    """The adjoint of :func:`weigh` of :func:`windows`, by differentiating them: both are linear."""
    like = torch.zeros(*values.shape[:2], *size, dtype=values.dtype, requires_grad=True)
    weighed = weigh(windows(like, kernel_size, stride, front, dilation, values.shape[2:]), kernels)
    return torch.autograd.grad(weighed, like, values, create_graph=True)[0]


def local_attention(
    x: Tensor,
    p: Parameters,
    heads: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None = None,
) -> Tensor:
    """Neighbourhood attention, with neighbours outside of the map, or masked, left out of the softmax.

    A number of the mask's is the logarithm of a factor by which its key counts more, or less.
    """
    axes = x.dim() - 2
    same = [d * (k - 1) // 2 for k, d in zip(kernel_size, dilation, strict=True)]
    query = pointwise(x[(..., *(slice(None, None, s) for s in stride))], p, "query").unflatten(1, (heads, -1))
    out = query.shape[3:]
    arguments = (kernel_size, stride, same, dilation, out)
    key = windows(pointwise(x, p, "key"), *arguments).flatten(2 + axes).unflatten(1, (heads, -1))
    counts = torch.ones_like(x[:, 0])
    if mask is not None:
        counts = (~mask).to(x.dtype) if mask.dtype == torch.bool else mask.exp()
    inside = windows(counts[:, None], *arguments).flatten(2 + axes)  # (B, 1, *Out, points)
    scores = torch.einsum("bgc...,bgc...k->bg...k", query, key) / query.shape[2] ** 0.5
    if "position_bias" in p:
        scores = scores + p["position_bias"].flatten(1).reshape(1, heads, *(1,) * axes, -1)
    weights = (scores.exp() * inside) / (scores.exp() * inside).sum(-1, keepdim=True).clamp(min=1e-300)
    value = windows(pointwise(x, p, "value"), *arguments)
    return pointwise(weigh(value, weights.movedim(-1, 2)), p, "project")
