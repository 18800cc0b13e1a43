"""How the benchmarks measure time, on the host and by CUDA graphs."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from benchmark_cases import CPU, SMALL

from benchmarks import (
    cases,
    operator,
    resources,
    results,
    timing,
)


def test_copies_pass_the_cache():
    assert timing.copies_for(10, 95) == 10
    assert timing.copies_for(1000, 95) == 2
    assert timing.copies_for(1, 10**9) == 1024
    assert timing.copies_for(10, 0) == 1


def test_calls_take_turns():
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]
    measured = timing.kernel_time(calls, CPU, timing.Effort(seconds=0, least=6, most=6))
    assert seen == [0, 0, 1, 2, 0, 1, 2]  # one to warm up
    assert (measured.repeats, measured.method) == (6, "wall clock")
    assert 0 < measured.fastest <= measured.seconds


class FakeGraph:
    """Stands in for a CUDA graph: replays the calls that were made while it was captured."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1

    def reset(self) -> None:
        pass


class FakeEvent:
    """Stands in for a CUDA event: a millisecond passes between any two."""

    def __init__(self, enable_timing: bool) -> None:
        pass

    record = synchronize = lambda self: None

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1.0


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_a_graph_holds_a_call_for_each_copy(fake_cuda):
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(5)]
    measured = timing.kernel_time(calls, torch.device("cuda"), timing.Effort(seconds=0.004, least=2, most=9))
    assert seen == [0, 4, 0, 0, 1, 2, 3, 4]  # to warm up, to estimate, and in the graph
    assert (measured.method, measured.repeats) == ("graph", 4)
    assert measured.seconds == pytest.approx(1e-3 / 5)


def test_what_cannot_be_captured_is_timed_by_itself(fake_cuda, monkeypatch):
    def refuse(calls, launches):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(timing, "_capture", refuse)
    measured = timing.kernel_time([lambda: None], torch.device("cuda"), timing.QUICK)
    assert (measured.method, measured.seconds) == ("events", pytest.approx(1e-3))


def test_a_call_as_a_graph(fake_cuda, monkeypatch):
    """It is captured once, behind a warm-up on a stream of its own, and replayed from then on."""

    class FakeStream:
        def wait_stream(self, other):
            seen.append("wait")

    seen: list[object] = []
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    replay = timing.graphed(lambda: seen.append("call"))
    assert seen == ["wait", "call", "call", "wait", "call"]
    replay()
    assert seen.count("call") == 3


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_host_time_is_per_call(fake_cuda, device):
    seen: list[int] = []
    seconds = timing.host_time(lambda: seen.append(0), torch.device(device), rounds=2, calls=10)
    assert len(seen) == 30 and 0 < seconds < 1e-3


def test_the_smallest_problem_has_the_same_kernel():
    case = replace(SMALL, kernel_size=(3, 5), strides=2)
    least = cases.smallest(case)
    assert (least.kernel_size, least.stride) == (case.kernel_size, case.stride)
    assert (least.input_shape, least.output_shape) == ((1, 1, 1, 1), (1, 1, 1, 1))


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_what_host_time_is_measured_of(operation):
    t = cases.make_tensors(SMALL, torch.float32, "contiguous", CPU)
    with torch.no_grad():
        bare, recorded = operator.eager_calls(operation, SMALL, t)
        assert not bare().requires_grad
        with torch.enable_grad():
            result = recorded()
    if operation == "forward":
        assert result.requires_grad
    else:
        assert torch.equal(result[0], bare())


@pytest.mark.gpu
def test_a_quick_run_on_the_gpu(tmp_path):
    output = tmp_path / "results.csv"
    shapes = ["--shapes", "rednet-4", "--batch", "2", "--dtypes", "float32", "bfloat16"]
    arguments = ["--device", "cuda", "--quick", *shapes, "--baselines", "plain", "unfold", "depthwise"]
    assert operator.main([*arguments, "--output", str(output)]) == 0
    for row in results.load(output)["results"]:
        assert row["method"] == "graph"
        assert row["host_us"] > 0 and row["host_grad_us"] > 0
        assert all(baseline["us"] > 0 for baseline in row["baselines"].values())


def test_the_argument_list_is_cut():
    assert (
        resources.without_arguments("void a::k<float, (a::Op)1>(a::P, int)") == "void a::k<float, (a::Op)1>"
    )
