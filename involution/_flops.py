"""What the operations cost, for ``torch.utils.flop_counter.FlopCounterMode``: two for each multiply-add.

As for torch's convolutions, products with the padding's zeros count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula


def _of_weighing(input: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Every element of the kernels meets each channel of its group once."""
    return 2 * math.prod(weight) * input[1] // max(1, weight[1])


def _of_correlating(query: Sequence[int], key: Sequence[int], size: Sequence[int], *_: Any, **__: Any) -> int:
    """Every element of the queries meets each point of its neighbourhood once."""
    return 2 * math.prod(query) * math.prod(size)


def _of_making_and_weighing(
    input: Sequence[int],
    features: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    kernel_size: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """A matrix product makes the kernels, and they meet the channels of their groups: as by two operations."""
    elements = weight[0] * math.prod((features[0], *features[2:]))
    groups = weight[0] // math.prod(kernel_size)
    return 2 * elements * features[1] + 2 * elements * input[1] // max(1, groups)


def _of_the_gradients(
    grad: Sequence[int],
    input: Sequence[int],
    features: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    asked: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    """Those of the operations that they are composed of."""
    elements = weight[0] * math.prod((features[0], *features[2:]))
    # It makes the kernels, and from their gradient that of the features and that of the weight, with eight columns
    # more if the bias's comes along.
    product = 2 * elements * features[1]
    bias_along = 2 * elements * 8 * (asked[2] and asked[3])
    weighing = 2 * elements * input[1] // max(1, weight[0] // math.prod(kernel_size))
    return product * sum(asked[:3]) + bias_along + weighing * (asked[0] + any(asked[1:]))


def register() -> None:
    """Tells torch's counter of the operators, which must be there already."""
    operators = torch.ops.involution
    register_flop_formula([operators.involution, operators.involution_transpose])(_of_weighing)
    register_flop_formula(operators.local_correlation)(_of_correlating)
    register_flop_formula(operators.fused_involution)(_of_making_and_weighing)
    register_flop_formula(operators.fused_involution_backward)(_of_the_gradients)
