"""Gradient checkpointing that leaves buffers, such as running statistics, as they would be without it."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class _SameBuffers:
    """Within it, the buffers of a block in training are copies of what they were when this was made.

    So what is computed a second time is what was computed the first time, whatever it makes of buffers, and changes
    to them are lost with the copies.
    """

    def __init__(self, block: nn.Module) -> None:
        self.before = [
            (module._buffers, name, buffer.clone())
            for module in block.modules()
            if module.training
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def __enter__(self) -> None:
        self.current = [buffers[name] for buffers, name, _ in self.before]
        for buffers, name, buffer in self.before:
            buffers[name] = buffer.clone()  # a graph that is kept is gone through again

    def __exit__(self, *error: object) -> None:
        for (buffers, name, _), current in zip(self.before, self.current, strict=True):
            buffers[name] = current


def checkpoint_block(block: nn.Module, input: Tensor) -> Tensor:
    """``block(input)``, whose insides are computed again in the backward pass instead of being kept."""
    if torch.compiler.is_compiling():
        # The compiler records the statistics' update once, outside of what it computes again.
        return checkpoint(block, input, use_reentrant=False)
    return checkpoint(
        block,
        input,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _SameBuffers(block)),
    )
