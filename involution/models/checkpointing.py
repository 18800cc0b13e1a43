"""Gradient checkpointing that leaves running statistics as they would be without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise as in training, but do not count the batch a second time.

    The statistics are still passed, with a momentum of 0: without them fewer tensors would be saved for the backward
    pass than the first time, which checkpointing takes for an error.
    """
    norms = [
        (module, module.momentum, module.num_batches_tracked)
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in norms:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def checkpoint_block(block: nn.Module, input: Tensor) -> Tensor:
    """``block(input)``, whose insides are computed again in the backward pass instead of being kept."""
    if torch.compiler.is_compiling():
        # The compiler records the statistics' update once, outside of what it computes again.
        return checkpoint(block, input, use_reentrant=False)
    return checkpoint(
        block,
        input,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)),
    )
