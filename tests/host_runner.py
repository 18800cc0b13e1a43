"""Executes the shipped kernels in a program with sanitizers: tests/host/runner.cpp and cpu_runner.cpp."""

import os
import select
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import host_build
import torch

OPERATIONS = ("involution", "involution_transpose", "local_correlation")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

REQUEST_MAGIC = 0x696E766F6C757431
REPLY_MAGIC = 0x726573756C740031
REQUEST = struct.Struct("=53q")  # struct Request and struct Reply of tests/host/protocol.h
FUSED_REQUEST = struct.Struct("=24q")  # struct FusedRequest of tests/host/fused_runner.cpp
FUSED_BACKWARD_REQUEST = struct.Struct("=25q")  # struct FusedBackwardRequest of fused_backward_runner.cpp
REPLY = struct.Struct("=4q")
POISON = 0xFF  # all bytes 0xFF are a NaN in every dtype


@dataclass(frozen=True)
class DeviceLimits:
    """What a plan may count on; the defaults are an H200's."""

    shared_memory_per_block: int = 227 * 1024
    shared_memory_per_multiprocessor: int = 228 * 1024
    multiprocessors: int = 132


class KernelError(AssertionError):
    """A kernel broke a rule on the host; the message is the sanitizer's or the barrier check's report."""


class HostRunner:
    """A running program that executes kernels, one request at a time; use it as a context manager.

    After a KernelError the next request starts a new program, so that one runner serves a whole test session.
    """

    def __init__(self, timeout: float = 300.0):
        self._program = self._build()
        self._timeout = timeout
        self._environment = host_build.environment()
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()

    def _build(self) -> Path:
        kernels = host_build.ROOT / "csrc" / "cuda"
        instances = (path for path in sorted(kernels.glob("*.cu")) if "_fused" not in path.stem)
        return host_build.build(
            "runner", [host_build.HOST / "runner.cpp", *host_build.PLAN_SOURCES, *instances]
        )

    def __enter__(self) -> "HostRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            self._stop()
        self._stderr.close()

    def run(
        self,
        operation: str,
        a: torch.Tensor,
        b: torch.Tensor,
        out: torch.Tensor,
        *,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        limits: DeviceLimits | None = None,
        seed: int = 0,
        force_generic: bool = False,
    ) -> tuple[torch.Tensor, str]:
        """Returns a new tensor with the shape and strides of `out`, and the plan that was followed, as text.

            involution            a = x, b = w, out = y
            involution_transpose  a = y, b = w, out = x
            local_correlation     a = y, b = x, out = w

        x is (B, C, *In), y is (B, C, *Out) and w is (B, groups, *K, *Out), with 1 to 3 spatial axes, in any
        strides and at any storage offset. Of `out` only the layout matters. Elements of the result that the
        kernel did not write are NaN. Writing between the elements of `out`, or touching memory outside of any
        tensor, is a KernelError; what lies between the elements of a and b reads as NaN.
        """
        roles = {
            "involution": {"x": a, "w": b, "y": out},
            "involution_transpose": {"y": a, "w": b, "x": out},
            "local_correlation": {"y": a, "x": b, "w": out},
        }[operation]
        request = REQUEST.pack(
            REQUEST_MAGIC,
            OPERATIONS.index(operation),
            DTYPES.index(_only({a.dtype, b.dtype, out.dtype})),
            seed,
            force_generic,
            *(number for tensor in (a, b, out) for number in (_span(tensor), _misalignment(tensor))),
            *_limits(limits or DeviceLimits()),
            *_problem(roles["x"], roles["y"], roles["w"], groups, kernel_size, stride, padding, dilation),
        )
        status, plan, memory = self._exchange(request + _pack(a) + _pack(b))
        if status != 0:
            raise KernelError(f"the launch of {operation} returned cudaError_t {status}; plan: {plan}")
        if len(memory) != _span(out):
            raise RuntimeError(f"{len(memory)} bytes came back for an output of {_span(out)}")
        result = _unpack(memory, out)
        if _pack(result) != memory:
            raise KernelError(f"{operation} wrote between the elements of its output; plan: {plan}")
        return result, plan

    def _exchange(self, request: bytes) -> tuple[int, str, bytes]:
        if self._process is None:
            self._start()
        try:
            self._send(request)
            magic, status, plan_bytes, out_bytes = REPLY.unpack(self._receive(REPLY.size))
            if magic != REPLY_MAGIC:
                raise RuntimeError("the program on the host answered with something that is not a reply")
            return status, self._receive(plan_bytes).decode(), self._receive(out_bytes)
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            code = self._stop()
            self._stderr.seek(0)
            report = self._stderr.read().decode(errors="replace").strip()
            reason = str(error) if isinstance(error, TimeoutError) else f"exit code {code}"
            raise KernelError(f"the kernel failed on the host ({reason})\n{report}") from None
        except BaseException:
            self._stop()  # a reply may be half read
            raise

    def _start(self) -> None:
        self._stderr.seek(0)
        self._stderr.truncate()
        self._process = subprocess.Popen(
            [self._program],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            bufsize=0,
        )

    def _stop(self) -> int:
        """Ends the program and returns its exit code."""
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(timeout=5)  # time to finish its report
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
        return process.wait()

    def _send(self, data: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        view = memoryview(data)
        while len(view) > 0:
            view = view[self._process.stdin.write(view) :]

    def _receive(self, count: int) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        file = self._process.stdout.fileno()
        deadline = time.monotonic() + self._timeout
        data = bytearray()
        while len(data) < count:
            ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer within {self._timeout:g} s")
            piece = os.read(file, min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class FusedRunner(HostRunner):
    """Executes the kernels of the fused involution layer."""

    def _build(self) -> Path:
        kernels = host_build.ROOT / "csrc" / "cuda"
        sources = [host_build.HOST / "fused_runner.cpp", kernels / "fused_plan.cpp"]
        return host_build.build("fused_runner", [*sources, *sorted(kernels.glob("kernels_*_fused.cu"))])

    def run_fused(
        self,
        x: torch.Tensor,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        kernel_size: int,
        stride: int = 1,
        groups: int | None = None,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        relu: bool = False,
        limits: DeviceLimits | None = None,
        seed: int = 0,
    ) -> tuple[torch.Tensor, str]:
        """Returns y and the plan, as text; y is all NaN where the plan says why there is none.

        x (B, H, W, C), features (B, Hout, Wout, R) and y have their channels last. By default a group has 16
        channels.
        """
        batch, height, width, channels = x.shape
        if groups is None:
            groups = channels // 16
        y = x.new_empty((*features.shape[:3], channels))
        operands = (x, features, weight, bias, scale, shift, y)
        request = FUSED_REQUEST.pack(
            REQUEST_MAGIC,
            DTYPES.index(x.dtype),
            seed,
            relu,
            *_limits(limits or DeviceLimits()),
            *(batch, channels, channels // groups, features.shape[-1], height, width),
            *(kernel_size, kernel_size, stride, stride),
            *(0 if tensor is None else _span(tensor) for tensor in operands),
        )
        data = b"".join(_pack(tensor) for tensor in operands[:-1] if tensor is not None)
        status, plan, memory = self._exchange(request + data)
        if status != 0:
            raise KernelError(f"the launch returned cudaError_t {status}; plan: {plan}")
        return _unpack(memory, y), plan


class FusedBackwardRunner(HostRunner):
    """Executes the kernels of the fused involution layer's gradients."""

    def _build(self) -> Path:
        kernels = host_build.ROOT / "csrc" / "cuda"
        plans = [kernels / "fused_plan.cpp", kernels / "fused_backward_plan.cpp"]
        sources = [host_build.HOST / "fused_backward_runner.cpp", *plans]
        return host_build.build(
            "fused_backward_runner", [*sources, *sorted(kernels.glob("kernels_*_fused_backward.cu"))]
        )

    def run_fused_backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        features: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        kernel_size: int = 7,
        stride: int = 1,
        groups: int | None = None,
        limits: DeviceLimits | None = None,
        seed: int = 0,
    ) -> tuple[list[torch.Tensor], list[str]]:
        """Returns the gradients of x, features, weight and bias, and the three plans, as text.

        Maps are (B, H, W, C). A gradient is all NaN where its plan says why there is none. By default a group has 16
        channels.
        """
        batch, height, width, channels = x.shape
        if groups is None:
            groups = channels // 16
        results = [torch.empty_like(tensor) for tensor in (x, features, weight, weight[:, 0])]
        operands = (dy, x, features, weight, bias)
        request = FUSED_BACKWARD_REQUEST.pack(
            REQUEST_MAGIC,
            DTYPES.index(x.dtype),
            seed,
            *_limits(limits or DeviceLimits()),
            *(batch, channels, channels // groups, features.shape[-1], height, width),
            *(kernel_size, kernel_size, stride, stride),
            *(0 if tensor is None else _span(tensor) for tensor in (*operands, *results)),
        )
        data = b"".join(_pack(tensor) for tensor in operands if tensor is not None)
        status, plans, memory = self._exchange(request + data)
        if status != 0:
            raise KernelError(f"a launch returned cudaError_t {status}; plans: {plans}")
        sizes = [_span(result) for result in results]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        parts = (memory[start : start + size] for start, size in zip(starts, sizes, strict=True))
        return [_unpack(part, like) for part, like in zip(parts, results, strict=True)], plans.splitlines()


class CpuRunner(HostRunner):
    """The native CPU kernels of one instruction set. `seed` shuffles the items of work.

    "wide" are kernels with vectors like those of AVX-512 but without its instructions, of float32 and bfloat16; a
    program has either these or AVX-512's.
    """

    def __init__(self, capability: str, wide: bool, timeout: float = 300.0):
        self._wide = wide  # what is built
        super().__init__(timeout)
        self._environment["INVOLUTION_CPU_CAPABILITY"] = capability

    def _build(self) -> Path:
        sources = {path.name: path for path in sorted((host_build.ROOT / "csrc" / "cpu").glob("*.cpp"))}
        if self._wide:
            sources["kernels_avx512.cpp"] = host_build.HOST / "kernels_wide.cpp"
        else:
            sources["no_wide.cpp"] = host_build.HOST / "no_wide.cpp"
        return host_build.build("cpu_runner", [host_build.HOST / "cpu_runner.cpp", *sources.values()])


def _problem(
    x: torch.Tensor,
    y: torch.Tensor,
    w: torch.Tensor,
    groups: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """The numbers of struct Problem (csrc/problem.h), in its order."""
    dims = len(kernel)
    batch, channels, *in_size = x.shape
    out_size = y.shape[2:]
    fits = y.shape[:2] == x.shape[:2] and w.shape == (batch, groups, *kernel, *out_size)
    if not fits or channels % groups != 0:
        raise ValueError(f"shapes do not fit: x {x.shape}, y {y.shape}, w {w.shape}, {groups} groups")
    return [
        *(batch, groups, channels // groups),
        *_expanded(in_size, 1),
        *_expanded(out_size, 1),
        *_expanded(kernel, 1),
        *_expanded(stride, 1),
        *_expanded(padding, 0),
        *_expanded(dilation, 1),
        *(*x.stride()[:2], *_expanded(x.stride()[2:], 0)),
        *(*y.stride()[:2], *_expanded(y.stride()[2:], 0)),
        *(*w.stride()[:2], *_expanded(w.stride()[2 : 2 + dims], 0), *_expanded(w.stride()[2 + dims :], 0)),
    ]


def _expanded(axes: Sequence[int], leading: int) -> list[int]:
    """One value for each of three axes; those that a 1D or 2D problem lacks come first."""
    return [leading] * (3 - len(axes)) + list(axes)


def _limits(limits: DeviceLimits) -> tuple[int, int, int]:
    return (
        limits.shared_memory_per_block,
        limits.shared_memory_per_multiprocessor,
        limits.multiprocessors,
    )


def _span(tensor: torch.Tensor) -> int:
    """Bytes from the first element of a tensor to the end of its last."""
    if tensor.numel() == 0:
        raise ValueError(f"kernels are not launched for an empty tensor, shape {tuple(tensor.shape)}")
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int((last + 1) * tensor.element_size())


def _misalignment(tensor: torch.Tensor) -> int:
    """As though the storage began at a multiple of 128 bytes, which is what allocators on a GPU give."""
    return tensor.storage_offset() * tensor.element_size() % 128


def _pack(tensor: torch.Tensor) -> bytes:
    """The memory of a tensor from its first element to its last, poisoned between them."""
    memory = torch.full((_span(tensor),), POISON, dtype=torch.uint8)
    elements = torch.as_strided(memory.view(tensor.dtype), tensor.shape, tensor.stride())
    # An expanded axis has one element, and torch does not copy to it many times.
    for axis, step in enumerate(tensor.stride()):
        if step == 0:
            elements, tensor = elements.narrow(axis, 0, 1), tensor.narrow(axis, 0, 1)
    elements.view(_bits(tensor.dtype)).copy_(tensor.detach().view(_bits(tensor.dtype)))
    return memory.numpy().tobytes()


def _unpack(memory: bytes, like: torch.Tensor) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(memory), dtype=like.dtype)
    return torch.as_strided(flat, like.shape, like.stride())


def _bits(dtype: torch.dtype) -> torch.dtype:
    """An integer type of the same size: copies of it keep every bit of a NaN."""
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def _only(dtypes: set[torch.dtype]) -> torch.dtype:
    if len(dtypes) != 1:
        raise ValueError(f"the tensors have different dtypes: {sorted(map(str, dtypes))}")
    return dtypes.pop()
