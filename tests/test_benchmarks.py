"""The instruments: what they count, what they read, and that they refuse to time a wrong answer."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import (
    cases,
    check,
    environment,
    operator,
    plain_kernel,
    plot,
    resources,
    results,
    rivals,
    summary,
    timing,
    tune,
)
from involution import _library

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SMALL = cases.Case("small", 2, 8, (6, 9), (3, 5), group_width=4)
PROBLEMS = (
    SMALL,
    cases.Case("stride", 2, 8, (8, 11), (7, 7), strides=2, group_width=4),
    cases.Case("sequence", 1, 4, (19,), (7,), group_width=2),
    cases.Case("volume", 1, 4, (4, 5, 6), (1, 3, 3), group_width=4),
)

# --- Cases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "width", "item_size", "expected"),
    [(7, 16, 2, 162), (7, 16, 4, 324), (3, 16, 2, 82), (7, 32, 2, 226)],
)
def test_ideal_bytes_of_a_position_and_group(kernel, width, item_size, expected):
    case = cases.Case("any", 3, 4 * width, (5, 6), (kernel, kernel), group_width=width)
    assert case.ideal_bytes(item_size) == expected * 3 * 4 * 5 * 6


def test_ideal_bytes_with_a_stride_count_the_larger_input():
    case = cases.Case("any", 1, 16, (8, 8), (3, 3), strides=2)
    assert case.output_size == (4, 4)
    assert case.ideal_bytes(4) == 4 * (16 * 64 + 16 * 16 + 9 * 16)
    assert case.multiply_adds == 16 * 16 * 9


def test_every_shape_is_there():
    chosen = cases.select(["*"], cases.BATCHES)
    assert len(chosen) == 3 * 8 + 4
    assert {case.batch for case in chosen if case.name.startswith("rednet")} == {1, 32, 256}
    by_name = {case.name: case for case in chosen}
    assert (by_name["detection"].batch, by_name["detection"].input_size) == (2, (200, 336))
    assert (by_name["mask-head"].batch, by_name["mask-head"].input_size) == (512, (14, 14))
    assert (by_name["sequence"].channels, by_name["sequence"].kernel_size) == (512, (31,))
    assert by_name["volume"].kernel_size == (3, 7, 7)
    on_cpu = cases.select(["*"], [8], "cpu")
    assert {case.name for case in on_cpu} == {*by_name, "tiny"}
    assert max(case.multiply_adds for case in on_cpu) < 5e8
    with pytest.raises(ValueError, match="No shape is called 'rednet-9'"):
        cases.select(["rednet-9"], [1])


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: case.name)
def test_layouts(case, layout):
    t = cases.make_tensors(case, torch.float32, layout, CPU)
    activations_last, kernels_last = cases.LAYOUTS[layout]
    assert (t.x.shape, t.w.shape, t.y.shape) == (case.input_shape, case.weight_shape, case.output_shape)
    assert (t.x.stride(1) == 1) == activations_last == (t.y.stride(1) == 1)
    assert (t.w.stride(1 + case.axes) == 1) == kernels_last
    twin = list(t.copies(2))[1]
    assert (twin.x.stride(), twin.w.stride()) == (t.x.stride(), t.w.stride())
    assert torch.equal(twin.w, t.w) and twin.w.data_ptr() != t.w.data_ptr()


def test_conversions_are_counted():
    """What a call allocates beside its result, to the byte."""
    x = torch.randn(2, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    assert environment.scratch_bytes(lambda: x.neg(), CPU) == 0
    assert environment.scratch_bytes(lambda: x.contiguous().neg(), CPU) == x.nbytes
    converted = environment.scratch_bytes(
        lambda: x.contiguous().neg().to(memory_format=torch.channels_last), CPU
    )
    assert converted == 2 * x.nbytes


@pytest.mark.parametrize("layout", cases.MIXED_LAYOUTS)
def test_mixed_formats_are_not_converted(layout):
    """The operators read and write either format where it lies: the cheapest conversion is none."""
    t = cases.make_tensors(SMALL, torch.float32, layout, CPU)
    for operation in cases.OPERATIONS:
        call = operator.call_of(operation, SMALL, t)
        assert environment.scratch_bytes(call, CPU) == 0


ROW = {"refused": "not measured", "rivals": {}}


def test_mixed_formats_are_measured_of_one_shape(capsys):
    class Stub:
        device = CPU

        def forget_bounds(self):
            pass

        def measure(self, operation, case, dtype, layout, operands):
            return {**ROW, "operation": operation, "case": case.name, "layout": layout, "dtype": dtype}

    options = operator.parse(["--device", "cpu", "--shapes", "rednet-1", "rednet-4", "--ops", "forward"])
    measured = [(row["case"], row["layout"]) for row in operator.rows(options, Stub())]
    assert measured == [
        ("rednet-1", "contiguous"),
        ("rednet-1", "activations_last"),
        ("rednet-1", "kernels_last"),
        ("rednet-4", "contiguous"),
    ]
    assert capsys.readouterr().out.count("REFUSED") == 4
    assert operator.parse(["--device", "cpu", "--layouts", "contiguous"]).mixed == []


# --- Answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", cases.OPERATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "kernels_last"])
@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: case.name)
def test_right_answers_pass(case, layout, operation, monkeypatch):
    monkeypatch.setattr(rivals, "_compile", lambda function: function)
    t = cases.make_tensors(case, torch.float32, layout, CPU)
    check.check(operation, case, t, operator.call_of(operation, case, t)())
    for rival in rivals.RIVALS.values():
        if rival.why_not(operation, case, layout, torch.float32, CPU) is None:
            rival.check(operation, case, t, rival.bind(operation, case)(t)())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_right_answers_in_half_pass(dtype, operation, monkeypatch):
    monkeypatch.setattr(rivals, "_compile", lambda function: function)
    case = replace(SMALL, kernel_size=(7, 7), channels=32, group_width=16)
    t = cases.make_tensors(case, dtype, "contiguous", CPU)
    check.check(operation, case, t, operator.call_of(operation, case, t)())
    for name in ("unfold", "shift-compiled", "depthwise"):
        rivals.RIVALS[name].check(operation, case, t, rivals.RIVALS[name].bind(operation, case)(t)())


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_wrong_answers_do_not_pass(operation):
    t = cases.make_tensors(SMALL, torch.float32, "contiguous", CPU)
    right = operator.call_of(operation, SMALL, t)()
    wrong = right.clone()
    wrong.view(-1)[-1] += 1e-3 * right.abs().max()  # one value, and by little
    missing = right.clone()
    missing.view(-1)[0] = math.nan
    for result in (wrong, missing, right[:1], right.double(), torch.zeros_like(right)):
        with pytest.raises(check.WrongAnswerError):
            check.check(operation, SMALL, t, result)


def test_large_problems_are_checked_by_some_pairs(monkeypatch):
    case = replace(SMALL, batch=16)
    monkeypatch.setitem(check.WORK, "cpu", 3 * case.multiply_adds // (case.batch * case.groups))
    batch, group = check._pairs(case, CPU)
    assert (batch.tolist(), group.tolist()) == ([0, 8, 15], [0, 0, 1])


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    output = tmp_path / "results.csv"
    code = operator.main(["--device", "cpu", "--quick", "--output", str(output), *arguments])
    return code, results.load(output)


def test_a_wrong_operator_gets_no_time(tmp_path, monkeypatch, capsys):
    right = _library.involution
    monkeypatch.setattr(_library, "involution", lambda *arguments: right(*arguments) * 1.01)
    code, document = run(tmp_path, "--rivals")
    by_operation = {row["operation"]: row for row in document["results"]}
    assert code == 1
    assert by_operation["forward"]["kernel_us"] is None
    assert "float64 reference" in by_operation["forward"]["refused"]
    assert by_operation["input_gradient"]["kernel_us"] > 0  # the others are right
    assert "REFUSED" in capsys.readouterr().out


def test_a_wrong_rival_gets_no_time(tmp_path, monkeypatch):
    right = rivals.unfold_forward
    monkeypatch.setattr(rivals, "unfold_forward", lambda x, w, case: right(x, w, case) + 1)
    code, document = run(tmp_path, "--ops", "forward", "--rivals", "unfold", "depthwise")
    (row,) = document["results"]
    assert code == 1
    assert row["kernel_us"] > 0 and row["rivals"]["unfold"].keys() == {"refused"}
    assert row["rivals"]["depthwise"]["us"] > 0


def test_rivals_that_cannot_run_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "free_bytes", lambda device: 1 << 20)

    def broken(operation, case):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(rivals.RIVALS, "depthwise", replace(rivals.RIVALS["depthwise"], bind=broken))
    code, document = run(tmp_path, "--ops", "forward", "--rivals", "plain", "unfold", "depthwise")
    found = document["results"][0]["rivals"]
    assert code == 0
    assert found["plain"] == {"skipped": "it is a CUDA kernel"}
    assert found["unfold"]["skipped"].startswith("it needs 0.0 GiB, and")
    assert found["depthwise"] == {"failed": "RuntimeError: no such thing"}


# --- A run, its record and its picture --------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("benchmark") / "results.csv"
    command = [
        sys.executable,
        "-m",
        "benchmarks.operator",
        "--device",
        "cpu",
        "--quick",
        "--output",
        str(output),
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Not cold" in finished.stdout
    return output


def test_a_quick_run(record):
    document = results.load(record)
    rows = document["results"]
    assert [row["operation"] for row in rows] == list(cases.OPERATIONS)
    for row in rows:
        assert row["gb_per_s"] == pytest.approx(row["ideal_bytes"] / row["kernel_us"] * 1e-3)
        assert row["copy_share"] == pytest.approx(row["copy_us"] / row["kernel_us"])
        assert 0 < row["host_us"] and 0 < row["host_grad_us"]
        assert row["scratch_bytes"] == 0
        unfold = row["rivals"]["unfold"]
        assert unfold["ratio"] == pytest.approx(unfold["us"] / row["kernel_us"])
    assert {"torch", "commit", "cold", "clocks_after"} <= document["environment"].keys()
    assert str(ROOT) not in record.read_text("utf-8")


def test_a_cpu_has_a_bound_and_one_thread(record):
    document = results.load(record)
    for row in document["results"]:
        assert row["bound_us"] >= row["copy_us"]
        assert row["bound_share"] == pytest.approx(row["bound_us"] / row["kernel_us"])
        assert (row["single_us"] is None) == (document["environment"]["threads"] == 1)


def test_a_cpu_measures_its_bounds_anew_for_each_shape(tmp_path, monkeypatch):
    seconds = itertools.count(1)
    monkeypatch.setattr(timing.CopyRoof, "_measure", lambda roof, moved: next(seconds))
    code, document = run(tmp_path, "--shapes", "tiny", "--layouts", "contiguous", "channels_last")
    assert code == 0
    copies = {
        layout: {
            row["copy_us"] / row["ideal_bytes"] for row in document["results"] if row["layout"] == layout
        }
        for layout in ("contiguous", "channels_last")
    }
    first, second = (min(copies[layout]) for layout in copies)
    assert all(max(rates) == pytest.approx(min(rates)) for rates in copies.values())
    assert second / first == pytest.approx(3 / 2)  # the first copy of all is the one that is printed


def test_a_run_adds_to_an_earlier_one(tmp_path, capsys):
    arguments = ["--ops", "forward", "--rivals", "reference"]
    code, first = run(tmp_path, *arguments)
    assert code == 0 and "us" in first["results"][0]["rivals"]["reference"]
    code, both = run(tmp_path, *arguments, "--append", "--layouts", "channels_last")
    assert code == 0
    assert [row["layout"] for row in both["results"]] == ["contiguous", "channels_last"]
    assert both["results"][0] == first["results"][0] and len(both["options"]["parts"]) == 2
    assert "time of channels_last over contiguous" in capsys.readouterr().out
    other = copy.deepcopy(first)
    other["environment"]["device"] = "another"
    with pytest.raises(ValueError, match="another device: 'another'"):
        results.merge(first, other)
    with pytest.raises(SystemExit):
        operator.parse(["--append", "--output", str(tmp_path / "none.csv")])


def test_a_summary_adds_up(record):
    (row,) = [row for row in results.load(record)["results"] if row["operation"] == "forward"]

    def made(case="rednet-1", **changes):
        rivals = {"unfold": {"us": changes.pop("unfold")}} if "unfold" in changes else {}
        usual = {"bound_us": 50.0, "warm_us": 80.0, "single_us": 160.0, "kernel_size": [7, 7]}
        return {**row, "case": case, "rivals": rivals, **usual, **changes}

    rows = [
        made(kernel_us=100.0, unfold=5000.0),
        made("rednet-2", kernel_us=100.0, unfold=3000.0, single_us=120.0),
        made(operation="input_gradient", kernel_us=200.0, unfold=4000.0),
        made(kernel_us=150.0, dtype="bfloat16"),
        made(kernel_us=125.0, layout="channels_last", bound_us=100.0),
    ]
    lines = summary.summarise(rows)
    said = {line[:58].strip(): line[58:].split() for line in lines}

    def figures(title):
        return float(said[title][0]), float(said[title][2])

    assert figures("unfold over ours, RedNet, forward") == (40, 30)
    assert figures("unfold over ours, RedNet, forward and both gradients") == (30, 20)
    assert figures("share of the machine's bound, K = 7, contiguous") == (0.375, 0.25)
    assert figures("share of the machine's bound, K = 7, channels_last") == (0.8, 0.8)
    assert figures("time of bfloat16 over float32") == (1.5, 1.5)
    assert figures("time of channels_last over contiguous, float32") == (1.25, 1.25)
    assert figures("time of one thread over all, warm")[1] == 1.5
    assert not any("float16 over" in line and "bfloat16" not in line for line in lines)


def test_a_broken_record_is_refused(record):
    document = results.load(record)

    def without_time(d):
        d["results"][0]["kernel_us"] = None

    def without_column(d):
        del d["results"][1]["copy_share"]

    def of_nothing_known(d):
        d["benchmark"] = "weather"

    def half_a_rival(d):
        d["results"][2]["rivals"]["unfold"] = {"us": 1.0}

    def without_its_torch(d):
        d["environment"]["torch"] = None

    for damage, message in (
        (without_time, "Result 0 must have either a time"),
        (without_column, "Result 1 lacks 'copy_share'"),
        (of_nothing_known, "no benchmark 'weather'"),
        (half_a_rival, "Result 2, rival unfold, lacks"),
        (without_its_torch, "None as 'torch', which is of the wrong type"),
    ):
        damaged = copy.deepcopy(document)
        damage(damaged)
        with pytest.raises(ValueError, match=message):
            results.validate(damaged)


def test_a_record_of_something_else_is_refused(record, tmp_path):
    with pytest.raises(ValueError, match=r"benchmarks\.operator, not of benchmarks\.network"):
        results.load(record, "network")
    table = tmp_path / "table.csv"
    table.write_text("case,batch\nrednet-1,1\n")
    with pytest.raises(ValueError, match="lack benchmark, options"):
        results.load(table)
    text = record.read_text("utf-8").rstrip()
    for spoiled in (text.rpartition(",")[0], f"{text},1"):
        table.write_text(spoiled)
        with pytest.raises(ValueError, match="Result 2 has another number of cells"):
            results.load(table)


def test_what_is_written_is_read(tmp_path):
    """Sizes, parts, missing values and text with commas and quotes."""
    rows = [
        {"case": "a", "input_size": [31], "kernel_us": 0.0984066123, "error": None, "copies": 3},
        {"case": "b", "input_size": [4, 5, 6], "kernel_us": 1e-7, "error": 2.0, "copies": None},
    ]
    rows[0]["rivals"] = {"unfold": {"us": 2.5, "ratio": 12345678.5}, "plain": {"skipped": 'no, "it" is'}}
    rows[1]["rivals"] = {"unfold": {"skipped": "1 GiB"}}
    environment = {"device": "A # B: C", "threads": 2, "built": {"cuda": None}, "cold": True}
    document = {
        "benchmark": "operator",
        "environment": environment,
        "options": {"batch": [1]},
        "results": rows,
    }
    path = tmp_path / "folder" / "record.csv"
    results.write(document, path)
    assert results.read(path) == document
    assert path.read_text("utf-8").splitlines()[-2:] == [
        'a,31,0.0984066123,,3,2.5,12345678.5,"no, ""it"" is",',
        "b,4x5x6,1e-07,2,,,,,1 GiB",
    ]
    assert [file.name for file in path.parent.iterdir()] == ["record.csv"]


@pytest.mark.parametrize(
    ("device", "capability", "benchmark", "name"),
    [
        ("NVIDIA H200 (R) NVL", None, "operator", "nvidia-h200-nvl"),
        ("NVIDIA H100 80GB HBM3", None, "layer", "nvidia-h100-layer"),
        ("AMD EPYC", "avx2", "network", "amd-epyc-avx2-network"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", None, "operator", "intel-xeon-cpu-2-20ghz-python"),
    ],
)
def test_a_device_has_one_record_of_each_benchmark(device, capability, benchmark, name):
    kind = "cuda" if "NVIDIA" in device else "cpu"
    about = {"device": device, "device_type": kind, "built": {"cpu_capability": capability}}
    document = {"benchmark": benchmark, "environment": about}
    assert results.default_path(document) == ROOT / "benchmarks" / "results" / f"{name}.csv"
    assert results.default_path(document, quick=True) == ROOT / "build" / "benchmarks" / f"{name}.csv"


RECORDS = sorted(results.FOLDER.glob("*.csv"))


def test_there_are_records():
    assert {path.stem for path in RECORDS} >= {"amd-epyc-avx512", "amd-epyc-avx512-network", "nvidia-h100"}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_records(path):
    """They are whole, and the next run of the device takes their place."""
    kind = path.stem.rsplit("-", 1)[-1]
    document = results.load(path, kind if kind in ("network", "layer") else "operator")
    assert results.default_path(document) == path
    assert len(document["results"]) >= 12


def test_a_measured_plan_becomes_a_row_of_the_kernels_table(tmp_path):
    problem = {"case": "rednet-1", "dtype": "bfloat16", "layout": "channels_last", "copy_us": 10.0}
    plan = {"runs": 7, "pack": 64, "rows": 2, "producers": 6, "stages": 3}
    forward, transposed = ({**problem, "operation": name} for name in ("forward", "input_gradient"))
    rows = [
        {**forward, "us": 12.5, "plan": {}},  # the library's own is none to write down
        {**forward, "us": 25.0, "plan": {**plan, "runs": 1}},
        {**forward, "us": 20.0, "plan": plan},
        {**transposed, "us": 40.0, "plan": plan},
        {**forward, "case": "mask-head", "us": 100.0, "plan": plan},
    ]
    about = environment.describe(CPU)
    document = {"benchmark": "tune", "environment": about, "options": {"batch": 16}, "results": rows}
    path = tmp_path / "shapes.csv"
    results.save(document, path)
    assert tune.table(path) == [
        "    {Operation::kInvolution, true, true, 7, 1, 14, 131072, {64, 7, 2, 0, 3, 6, 1}},  // 10%",
        "    {Operation::kInvolution, true, true, 7, 1, 56, 1024, {64, 7, 2, 0, 3, 6, 1}},  // 50%",
        "    {Operation::kTranspose, true, true, 7, 1, 56, 1024, {64, 7, 2, 0, 3, 6, 1}},  // 25%",
    ]


def test_the_table_goes_between_the_markers(record, tmp_path):
    table = plot.markdown(results.load(record))
    lines = table.splitlines()
    assert lines[0].startswith("| problem | dtype | layout | forward: time, of copy, unfold, depthwise |")
    assert lines[2].startswith("| 1 x 512 x 7x7, K 7x7 | float32 | contiguous |")
    readme = tmp_path / "README.md"
    readme.write_text("before\n")
    assert not plot.insert(readme, table)
    readme.write_text(f"before\n{plot.BEGIN}\nold\n{plot.END}\nafter\n")
    assert plot.insert(readme, table)
    assert readme.read_text() == f"before\n{plot.BEGIN}\n{table}\n{plot.END}\nafter\n"


def test_the_picture(record, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "roofline.png"
    assert plot.main([str(record), "--output", str(output)]) == 0
    assert output.read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.startswith("| problem |")


# --- Timing -----------------------------------------------------------------------------------------------


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
    least = operator.smallest(case)
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
    arguments = ["--device", "cuda", "--quick", *shapes, "--rivals", "plain", "unfold", "depthwise"]
    assert operator.main([*arguments, "--output", str(output)]) == 0
    for row in results.load(output)["results"]:
        assert row["method"] == "graph"
        assert row["host_us"] > 0 and row["host_grad_us"] > 0
        assert all(rival["us"] > 0 for rival in row["rivals"].values())


# --- Machine code -----------------------------------------------------------------------------------------

# A loop over FFMA inside a loop that has an HFMA2 which only makes a constant; then padding.


def test_the_argument_list_is_cut():
    assert (
        resources.without_arguments("void a::k<float, (a::Op)1>(a::P, int)") == "void a::k<float, (a::Op)1>"
    )


NVCC = resources.find_nvcc()


@pytest.mark.skipif(NVCC is None, reason="no nvcc (CUDA toolkit) to compile the kernel with")
def test_the_plain_kernel_compiles(tmp_path):
    table = resources.compile_cubin(
        NVCC or "", plain_kernel.FOLDER / "plain.cu", "sm_90", tmp_path / "plain.cubin"
    )
    assert len(table) == 3 * 3  # operations x dtypes
    assert not [row for row in table if not row.clean]
