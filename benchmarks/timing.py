"""Time on the device, and time on the host.

On a GPU the calls are captured in a CUDA graph, one for each of several copies of the operands and each with
a result of its own, so that together they pass the L2 cache by far and every call finds it cold; the graph is
replayed between two events, and a call's time is its share, with the gap that a graph leaves between kernels.
A call that cannot be captured is timed between events of its own. On a CPU the wall clock times single calls,
over the same copies.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long a measurement lasts: seconds to aim at, and bounds on how often it is repeated."""

    seconds: float = 0.2
    least: int = 5
    most: int = 50


QUICK = Effort(seconds=0.02, least=3, most=10)


@dataclass(frozen=True)
class Measurement:
    """Seconds of a call, the median and the fastest of ``repeats`` samples, and how they were taken."""

    seconds: float
    fastest: float
    method: str  # "graph", "events" or "wall clock"
    repeats: int


def _measurement(samples: Sequence[float], method: str) -> Measurement:
    return Measurement(statistics.median(samples), min(samples), method, len(samples))


def kernel_time(calls: Sequence[Call], device: torch.device, effort: Effort) -> Measurement:
    """The time of one call, taking turns over ``calls``: the same on operands in different places."""
    if device.type != "cuda":
        return _wall_clock(calls, effort)
    for call in (calls[0], calls[-1]):  # compiles, chooses algorithms, fills the allocator
        call()
    torch.cuda.synchronize()
    once = _between_events(calls[0])
    launches = max(len(calls), min(20, int(2e-3 / max(once, 1e-6)) + 1))
    try:
        graph = _capture(calls, launches)
    except RuntimeError:
        torch.cuda.synchronize()
        samples = [_between_events(calls[i % len(calls)]) for i in range(_repeats(once, effort))]
        return _measurement(samples, "events")
    first = _between_events(graph.replay)
    samples = [_between_events(graph.replay) / launches for _ in range(_repeats(first, effort))]
    graph.reset()
    return _measurement(samples, "graph")


def _capture(calls: Sequence[Call], launches: int) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    # As many results are alive as there are operands: else all calls would write to one, cached place.
    results: deque[object] = deque(maxlen=len(calls))
    with torch.cuda.graph(graph):
        for launch in range(launches):
            results.append(calls[launch % len(calls)]())
    graph.replay()
    torch.cuda.synchronize()
    return graph


def graphed(call: Call) -> Call:
    """The call as a CUDA graph, captured here; what is returned replays it, without the host's part."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # What a backward pass remembers of streams must not be of the default one.
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, chooses algorithms, fills the allocator
            call()
    torch.cuda.current_stream().wait_stream(stream)
    return functools.partial(_replay, _capture([call], 1), call)


def _replay(graph: torch.cuda.CUDAGraph, call: Call) -> None:
    """Replays a graph; `call` is held for the tensors whose addresses the graph has."""
    graph.replay()


def _between_events(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def _repeats(once: float, effort: Effort) -> int:
    return max(effort.least, min(effort.most, int(effort.seconds / max(once, 1e-9))))


def _wall_clock(calls: Sequence[Call], effort: Effort) -> Measurement:
    calls[0]()
    samples: list[float] = []
    spent = 0.0
    while len(samples) < effort.least or (spent < effort.seconds and len(samples) < effort.most):
        call = calls[len(samples) % len(calls)]
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
        spent += samples[-1]
    return _measurement(samples, "wall clock")


def host_time(call: Call, device: torch.device, rounds: int = 5, calls: int = 50) -> float:
    """What a call costs the calling thread, in seconds. It does not wait for a GPU; on a CPU it does the work."""
    samples = []
    for _ in range(rounds + 1):
        _wait(device)  # the launch queue is empty, and has room for all the calls
        start = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - start) / calls)
    _wait(device)
    return statistics.median(samples[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class CopyRoof:
    """The time in which the device copies: the roof of everything that is bound by memory.

    On a GPU a copy that moves exactly the bytes in question, half read and half written, under the same
    conditions as the operation. On a CPU one large copy gives a bandwidth for all sizes.
    """

    def __init__(self, device: torch.device, effort: Effort, rotation: int, large: int = 1 << 28) -> None:
        self.device = device
        self.effort = effort
        self.rotation = rotation
        self.large = large
        self._known: dict[int, float] = {}

    def seconds(self, moved: int) -> float:
        """The time to move this many bytes, reads and writes counted together."""
        size = moved if self.device.type == "cuda" else self.large
        if size not in self._known:
            self._known[size] = self._measure(size)
        return self._known[size] * moved / size

    def forget(self) -> None:
        """Lets the next use measure anew."""
        self._known.clear()

    def _measure(self, moved: int) -> float:
        half = max(1, moved // 2)
        sets = copies_for(moved, self.rotation) if self.device.type == "cuda" else 1
        buffers = [
            tuple(torch.zeros(half, dtype=torch.uint8, device=self.device) for _ in range(2))
            for _ in range(sets)
        ]

        def copier(target: Tensor, source: Tensor) -> Call:
            return lambda: target.copy_(source)

        calls = [copier(*pair) for pair in buffers]
        return kernel_time(calls, self.device, self.effort).seconds


class MatmulRoof:
    """The rate of a large float32 matrix product on the CPU, with the threads that torch has."""

    def __init__(self, effort: Effort, size: int = 2048) -> None:
        self.effort = effort
        self.size = size
        self._known: float | None = None

    def multiply_adds_per_second(self) -> float:
        """Measured at the first use."""
        if self._known is None:
            a, b = torch.randn(2, self.size, self.size)
            self._known = self.size**3 / _wall_clock([lambda: a @ b], self.effort).seconds
        return self._known

    def forget(self) -> None:
        """Lets the next use measure anew."""
        self._known = None


def copies_for(size: int, rotation: int) -> int:
    """How many copies of operands and result of this size together pass ``rotation`` bytes; at least two."""
    return max(2, min(1024, -(-rotation // max(1, size)))) if rotation > 0 else 1
