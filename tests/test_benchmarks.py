"""The operator's benchmark: its cases, and that wrong results get no time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from benchmark_cases import CPU, SMALL, run

from benchmarks import (
    baselines,
    cases,
    check,
    environment,
    operator,
    plain_kernel,
    resources,
)
from involution import _library

PROBLEMS = (
    SMALL,
    cases.Case("stride", 2, 8, (8, 11), (7, 7), strides=2, group_width=4),
    cases.Case("sequence", 1, 4, (19,), (7,), group_width=2),
    cases.Case("volume", 1, 4, (4, 5, 6), (1, 3, 3), group_width=4),
)


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


ROW = {"refused": "not measured", "baselines": {}}


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


@pytest.mark.parametrize("operation", cases.OPERATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "kernels_last"])
@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: case.name)
def test_right_answers_pass(case, layout, operation, monkeypatch):
    monkeypatch.setattr(baselines, "_compile", lambda function: function)
    t = cases.make_tensors(case, torch.float32, layout, CPU)
    check.check(operation, case, t, operator.call_of(operation, case, t)())
    for baseline in baselines.BASELINES.values():
        if baseline.why_not(operation, case, layout, torch.float32, CPU) is None:
            baseline.check(operation, case, t, baseline.bind(operation, case)(t)())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_right_answers_in_half_pass(dtype, operation, monkeypatch):
    monkeypatch.setattr(baselines, "_compile", lambda function: function)
    case = replace(SMALL, kernel_size=(7, 7), channels=32, group_width=16)
    t = cases.make_tensors(case, dtype, "contiguous", CPU)
    check.check(operation, case, t, operator.call_of(operation, case, t)())
    for name in ("unfold", "shift-compiled", "depthwise"):
        baselines.BASELINES[name].check(
            operation, case, t, baselines.BASELINES[name].bind(operation, case)(t)()
        )


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


def test_a_wrong_operator_gets_no_time(tmp_path, monkeypatch, capsys):
    right = _library.involution
    monkeypatch.setattr(_library, "involution", lambda *arguments: right(*arguments) * 1.01)
    code, document = run(tmp_path, "--baselines")
    by_operation = {row["operation"]: row for row in document["results"]}
    assert code == 1
    assert by_operation["forward"]["kernel_us"] is None
    assert "float64 reference" in by_operation["forward"]["refused"]
    assert by_operation["input_gradient"]["kernel_us"] > 0  # the others are right
    assert "REFUSED" in capsys.readouterr().out


def test_a_wrong_baseline_gets_no_time(tmp_path, monkeypatch):
    right = baselines.unfold_forward
    monkeypatch.setattr(baselines, "unfold_forward", lambda x, w, case: right(x, w, case) + 1)
    code, document = run(tmp_path, "--ops", "forward", "--baselines", "unfold", "depthwise")
    (row,) = document["results"]
    assert code == 1
    assert row["kernel_us"] > 0 and row["baselines"]["unfold"].keys() == {"refused"}
    assert row["baselines"]["depthwise"]["us"] > 0


def test_baselines_that_cannot_run_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "free_bytes", lambda device: 1 << 20)

    def broken(operation, case):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(
        baselines.BASELINES, "depthwise", replace(baselines.BASELINES["depthwise"], bind=broken)
    )
    code, document = run(tmp_path, "--ops", "forward", "--baselines", "plain", "unfold", "depthwise")
    found = document["results"][0]["baselines"]
    assert code == 0
    assert found["plain"] == {"skipped": "it is a CUDA kernel"}
    assert found["unfold"]["skipped"].startswith("it needs 0.0 GiB, and")
    assert found["depthwise"] == {"failed": "RuntimeError: no such thing"}


NVCC = resources.find_nvcc()


@pytest.mark.skipif(NVCC is None, reason="no nvcc (CUDA toolkit) to compile the kernel with")
def test_the_plain_kernel_compiles(tmp_path):
    table = resources.compile_cubin(
        NVCC or "", plain_kernel.FOLDER / "plain.cu", "sm_90", tmp_path / "plain.cubin"
    )
    assert len(table) == 3 * 3  # operations x dtypes
    assert not [row for row in table if not row.clean]
