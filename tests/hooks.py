"""Every hook that a module has, and that none of them sees its tensors changed afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def hooked(module: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What a call gives and its gradients, with forward and full backward hooks on every module inside."""
    seen: list[tuple[str, Tensor, Tensor]] = []
    called = []

    def keep(name: str) -> Any:
        def hook(inside: nn.Module, arguments: tuple, output: Any) -> None:
            tensors = [leaf for leaf in tree_leaves((arguments, output)) if isinstance(leaf, Tensor)]
            seen.extend((name, tensor, tensor.detach().clone()) for tensor in tensors)

        return hook

    handles = []
    for name, inside in module.named_modules():
        handles.append(inside.register_forward_hook(keep(name)))
        handles.append(inside.register_full_backward_hook(lambda inside, *_: called.append(inside)))
    try:
        outputs, gradients = gradients_of(module, x)
    finally:
        for handle in handles:
            handle.remove()
    assert called and seen
    for name, tensor, before in seen:
        assert torch.equal(tensor, before), f"{name or 'the module'} saw a tensor that changed afterwards"
    return outputs, gradients


def gradients_of(module: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What a call gives and its gradients."""
    outputs = tree_leaves(module(x))
    loss = sum(output.square().sum() for output in outputs)
    return outputs, list(torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=True))
