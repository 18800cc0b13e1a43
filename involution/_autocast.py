"""The operators under ``torch.autocast``: for installations without the extension.

As in ``csrc/autocast.cpp``, and as for torch's convolutions: the tensors are cast to autocast's dtype, in which the
result comes back; float64 is left alone, and so is a tensor on another device than autocast's. So are the scale and
shift of an epilogue, which is applied to float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["register"]

KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
# How many of an operator's arguments, the first ones, are tensors to cast.
TENSORS = {"involution": 2, "involution_transpose": 2, "local_correlation": 2, "fused_involution": 4}


def _cast(tensor: Tensor | None, device_type: str) -> Tensor | None:
    if tensor is None:
        return None
    eligible = tensor.device.type == device_type and tensor.is_floating_point()
    if not eligible or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _autocast_kernel(name: str, device_type: str) -> Callable[..., Tensor]:
    operator = getattr(torch.ops.involution, name).default
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEYS[device_type]))

    def kernel(*arguments: Any) -> Tensor:
        tensors, others = arguments[: TENSORS[name]], arguments[TENSORS[name] :]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(*(_cast(tensor, device_type) for tensor in tensors), *others)

    return kernel


def register(library: torch.library.Library) -> None:
    """Registers what the operators do under autocast.

    Args:
        library: one for the namespace of the operators, of kind ``"IMPL"``; it keeps the registrations alive.
    """
    for name in TENSORS:
        for device_type, key in KEYS.items():
            library.impl(name, _autocast_kernel(name, device_type), key)
