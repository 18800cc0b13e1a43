"""What published counts of operations hold beside multiply-adds."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class ElementwiseCosts(TorchDispatchMode):
    """Twice the input of every norm, the input of ``operations``, the output where a bias is added or a map is resized.

    A resizing counts that is by a factor, as a module's is; one to a given size, a function's, is not counted by mmcv.

    Args:
        operations: names beside ReLU and pooling.
        biased: what biases count of.
    """

    def __init__(self, *operations: str, biased: tuple[str, ...] = ("convolution",)) -> None:
        super().__init__()
        self.operations = {"relu", "relu_", "max_pool2d_with_indices", "avg_pool2d", *operations}
        self.biased = biased
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        name = function.overloadpacket.__name__
        if "batch_norm" in name:
            self.count += 2 * arguments[0].numel()
        elif name in self.operations:
            self.count += arguments[0].numel()
        elif name in self.biased and (name == "addmm" or arguments[2] is not None):
            self.count += result.numel()
        elif name == "upsample_bilinear2d" and arguments[3:] and arguments[3] is not None:
            self.count += result.numel()
        return result
