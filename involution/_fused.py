"""Which involutions take the fused kernel: the one place where that is chosen.

``fused_involution`` gives the right result for everything; what is decided here is whether there is a kernel that
makes it without writing the kernel tensor. Only sizes, dtypes, devices and formats are looked at, so that torch.compile
and torch.export trace the choice.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _arguments
from ._build_info import build_info

__all__ = ["Availability", "fused_available"]

Size = Sequence[int]

# What there are kernels for (csrc/cuda).
DEVICE_TYPE = "cuda"
CAPABILITY = (8, 0)
DTYPES = (torch.float16, torch.bfloat16)
KERNEL_SIZES = ((3, 3), (5, 5), (7, 7))
STRIDES = ((1, 1), (2, 2))
GROUP_CHANNELS = 16
FEATURE_MULTIPLE = 8
MOST_FEATURES = 128
# And for its gradients, while this variable is 1: no GPU has measured them.
BACKWARD_VARIABLE = "INVOLUTION_FUSED_BACKWARD"
BACKWARD_KERNEL_SIZE = (7, 7)
BACKWARD_STRIDE = (1, 1)
# What torch.autograd.grad(is_grads_batched=True) maps over, which is not torch.func's.
_MAPPED = torch._C._dispatch_key_parse("Batched")


@dataclass(frozen=True)
class Availability:
    """The answer to whether something can be done: true or false, with the reason why not as a sentence.

    Attributes:
        reason: why not, or None where it can be done.
    """

    reason: str | None

    def __bool__(self) -> bool:
        return self.reason is None

    def __str__(self) -> str:
        return "available" if self.reason is None else self.reason


def fused_available(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    kernel_size: int | Size,
    stride: int | Size = 1,
    padding: int | Size | str = 0,
    dilation: int | Size = 1,
) -> Availability:
    """Whether an involution with these tensors has a kernel that makes its kernels itself.

    ``torch.ops.involution.fused_involution`` takes them in either case; where this is false, it is composed of a
    matrix product and the involution. Under ``torch.autocast`` the dtype is autocast's. A layer is asked by its
    method ``fused_available``.

    Args:
        input (Tensor): ``(B, C, *In)``.
        features (Tensor): ``(B, R, *Out)``, what the kernels are made from.
        weight (Tensor): ``(G * prod(K), R)``, what makes them.
        kernel_size (int or tuple of int): ``K``, an integer or one per axis.
        stride (int or tuple of int): Positions from one window to the next, an integer or one per axis. Default:
            1
        padding (int, tuple of int or str): Zeros in front of each axis, an integer or one per axis; ``"same"``
            keeps the size (stride 1), ``"valid"`` is 0. Default: 0
        dilation (int or tuple of int): Positions from one kernel point to the next, an integer or one per axis.
            Default: 1

    Returns:
        Something that is true or false, and whose ``reason`` is a sentence where it is false.

    Raises:
        ValueError: a size, stride, padding or dilation is out of range; the message says which.
        TypeError: one of them has the wrong type.
    """
    axes = input.dim() - 2
    sizes = _arguments.per_axis(kernel_size, axes, "kernel_size", 1)
    window = _arguments.complete_window(axes, sizes, stride, padding, dilation)
    reason = why_unavailable(input, features, weight, sizes, window.stride, window.padding, window.dilation)
    return Availability(reason)


def why_unavailable(
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> str | None:
    """Why there is no fused kernel for an involution, as a sentence, or None where there is one."""
    if input.device.type != DEVICE_TYPE:
        return f"The fused kernel runs on CUDA devices, but the input is on {input.device.type}."
    if (reason := _why_not_on(input.device.index or 0)) is not None:
        return reason
    kernel_size, stride, padding = tuple(kernel_size), tuple(stride), tuple(padding)
    if kernel_size not in KERNEL_SIZES:
        known = ", ".join(f"{height}x{width}" for height, width in KERNEL_SIZES)
        return f"The fused kernel is for kernel sizes {known}, not {kernel_size}."
    for tensor in (input, features, weight):
        dtype = _dtype_of(tensor)
        if dtype not in DTYPES:
            return f"The fused kernel is for float16 and bfloat16, not {dtype}."
    if stride not in STRIDES:
        return f"The fused kernel is for strides of 1 and 2, the same along both axes, not {stride}."
    if max(dilation) > 1:
        return f"The fused kernel has no dilation, but it is {tuple(dilation)}."
    if padding != tuple(size // 2 for size in kernel_size):
        return f"The fused kernel is for the padding that keeps the size, K // 2, not {padding}."
    channels, reduced = input.shape[1], features.shape[1]
    groups = weight.shape[0] // math.prod(kernel_size)
    if channels != groups * GROUP_CHANNELS:
        return (
            f"The fused kernel is for groups of {GROUP_CHANNELS} channels, but {channels} channels have "
            f"{groups} groups."
        )
    if reduced % FEATURE_MULTIPLE != 0 or reduced > MOST_FEATURES:
        return (
            f"The fused kernel is for a multiple of {FEATURE_MULTIPLE} features, {MOST_FEATURES} at most, "
            f"not {reduced}."
        )
    if any(
        out != -(-size // s) for out, size, s in zip(features.shape[2:], input.shape[2:], stride, strict=True)
    ):
        return (
            f"The fused kernel gives maps of size ceil(In / stride), but the features are {tuple(features.shape[2:])} "
            f"for an input of {tuple(input.shape[2:])} and stride {stride}."
        )
    for name, tensor in (("input", input), ("features", features)):
        if not _is_dense_channels_last(tensor):
            return f"The fused kernel is for dense channels_last storage, but the {name} is stored otherwise."
    return None


def why_no_backward(
    grad: Tensor,
    input: Tensor,
    features: Tensor,
    weight: Tensor,
    kernel_size: Size,
    stride: Size,
    padding: Size,
    dilation: Size,
) -> str | None:
    """Why a backward pass is composed of the operations, as a sentence, or None where it takes kernels of its own."""
    switch = os.environ.get(BACKWARD_VARIABLE, "")
    if switch not in ("", "0", "1"):
        raise ValueError(
            f"The environment variable {BACKWARD_VARIABLE} must be 0 or 1, or unset, but is {switch!r}."
        )
    if switch != "1":
        return f"The kernels of the backward pass are switched on by {BACKWARD_VARIABLE}=1."
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._dispatch_keys(grad).has(_MAPPED):
        return "The kernels of the backward pass are not for tensors under torch.func's transforms."
    reason = why_unavailable(input, features, weight, kernel_size, stride, padding, dilation)
    if reason is not None:
        return reason
    if tuple(kernel_size) != BACKWARD_KERNEL_SIZE or tuple(stride) != BACKWARD_STRIDE:
        return (
            f"The kernels of the backward pass are for kernel size {BACKWARD_KERNEL_SIZE} and stride "
            f"{BACKWARD_STRIDE}, not for {tuple(kernel_size)} and {tuple(stride)}."
        )
    if grad.dtype != input.dtype or not _is_dense_channels_last(grad):
        return "The kernels of the backward pass are for a gradient with the dtype and storage of the input."
    return None


def _is_dense_channels_last(map: Tensor) -> bool:
    """By its strides, because to ask ``is_contiguous`` for a memory format is an error under ``torch.vmap``."""
    _, channels, height, width = map.shape
    dense = (height * width * channels, 1, width * channels, channels)
    return all(own == of or size == 1 for own, of, size in zip(map.stride(), dense, map.shape, strict=True))


def _dtype_of(tensor: Tensor) -> torch.dtype:
    """The dtype in which the operator will see a tensor."""
    device = tensor.device.type
    if tensor.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


@functools.cache
def _why_no_kernels_on(device: int) -> str | None:
    info = build_info()
    if info["cuda"] is None:
        return str(info["no_cuda_reason"])
    if not torch.cuda.is_available():  # a model for a GPU can be traced without one
        return "The fused kernel is chosen by the capability of the device, but torch sees no CUDA device."
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        return (
            f"The fused kernel needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later, but device {device} "
            f"has {capability[0]}.{capability[1]}."
        )
    return None


def _why_not_on(device: int) -> str | None:
    """Why a CUDA device has no fused kernels, or None where it has."""
    return _why_no_kernels_on(device)


# torch.compile asks and keeps the answer: what torch.compiler.assume_constant_result does, which imports the compiler.
_why_not_on._dynamo_marked_constant = True  # type: ignore[attr-defined]
