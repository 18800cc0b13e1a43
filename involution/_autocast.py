"""The operators under ``torch.autocast``: for installations without the extension.

As in ``csrc/autocast.cpp``, and as for torch's convolutions: both tensors are cast to autocast's dtype, in which
the result comes back; float64 is left alone, and so is a tensor on another device than autocast's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["register"]

KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def _cast(tensor: Tensor, device_type: str) -> Tensor:
    eligible = tensor.device.type == device_type and tensor.is_floating_point()
    if not eligible or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def _autocast_kernel(name: str, device_type: str) -> Callable[..., Tensor]:
    operator = getattr(torch.ops.involution, name).default
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEYS[device_type]))

    def kernel(first: Tensor, second: Tensor, *arguments: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(_cast(first, device_type), _cast(second, device_type), *arguments)

    return kernel


def register(library: torch.library.Library) -> None:
    """Registers what the operators do under autocast.

    Args:
        library: one for the namespace of the operators, of kind ``"IMPL"``; it keeps the registrations alive.
    """
    for name in ("involution", "involution_transpose", "local_correlation"):
        for device_type, key in KEYS.items():
            library.impl(name, _autocast_kernel(name, device_type), key)
