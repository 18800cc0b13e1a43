"""The check on a GPU, as far as it goes without one: limits, verdicts, the page, the profiler's table, the problems."""

from __future__ import annotations

import csv
import io
import itertools
import shlex
import sys
import time
from pathlib import Path

import cases
import instances
import pytest
import torch

from benchmarks import gpu_check, ncu, network, operator, results
from benchmarks.cases import OPERATIONS, select

NOTHING = gpu_check.matching("^nothing has this$", most=1)

# --- Steps ------------------------------------------------------------------------------------------------


def step(name: str, *programs: str, limit: float = 60, **options) -> gpu_check.Step:
    """A step of shell programs."""
    options.setdefault("table", NOTHING)
    return gpu_check.Step(name, limit, [["sh", "-c", program] for program in programs], **options)


def has_ended(process: int) -> bool:
    """Whether it is gone, or a zombie that nobody has asked for yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_every_step_runs_whatever_became_of_those_before(tmp_path, capsys):
    steps = [
        step("good", "echo one $SETTING", "echo two", environment={"SETTING": "set"}),
        step("bad", "echo the reason; exit 3", "echo never"),
        step("slow", "sleep 60 & echo $!; wait", limit=1),
        gpu_check.Step("absent", 9, [["no-such-tool", "--version"]], NOTHING),
        step("untold", "echo done", table=ncu_table_of_log),
        step("last", "echo '=== 3 passed in 2.5s ==='; echo more", says=r"passed in \d"),
    ]
    start = time.monotonic()
    assert gpu_check.run(steps, tmp_path / "out", "A machine") == 1
    assert time.monotonic() - start < 20
    text = (tmp_path / "out" / "summary.txt").read_text()
    rows = {line.split()[0]: line for line in text.splitlines()[2:8]}
    assert text.startswith("A machine: 2 of 6 steps passed, in ")
    assert rows["good"].split()[1] == rows["last"].split()[1] == "ok"
    assert "FAILED" in rows["bad"] and rows["bad"].endswith("bad.log        the reason")
    assert "timed out" in rows["slow"]
    assert rows["absent"].endswith("no-such-tool cannot be run here; it comes with the CUDA toolkit.")
    assert "FAILED" in rows["untold"] and "ncu printed no table" in rows["untold"]
    assert rows["last"].endswith("3 passed in 2.5s")
    log = (tmp_path / "out" / "good.log").read_text()
    assert log == "$ sh -c 'echo one $SETTING'\none set\n$ sh -c 'echo two'\ntwo\n"
    assert "never" not in (tmp_path / "out" / "bad.log").read_text().splitlines()
    process = int((tmp_path / "out" / "slow.log").read_text().split()[-1])
    deadline = time.monotonic() + 5
    while not has_ended(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert has_ended(process)
    printed = capsys.readouterr().out
    assert "[3/6] slow, at most 1 s: timed out after 1 s" in printed and text in printed


def ncu_table_of_log(log: Path) -> list[str]:
    return ncu.table(log.read_text())


def test_it_passes_where_every_step_does(tmp_path, capsys):
    assert gpu_check.run([step("good", "true"), step("too", "true")], tmp_path, "A machine") == 0
    assert "A machine: 2 of 2 steps passed" in capsys.readouterr().out


def test_results_of_an_earlier_run_are_not_shown(tmp_path):
    written(tmp_path, "operator", operator_rows())
    broken = step("operator", "exit 1", table=gpu_check.operator_table)
    assert gpu_check.run_step(broken, tmp_path).table == []


def test_a_step_that_fails_shows_what_it_measured(tmp_path):
    written(tmp_path, "kept", operator_rows())
    broken = step(
        "operator", shlex.join(["cp", f"{tmp_path}/kept.csv", f"{tmp_path}/operator.csv"]), "exit 1"
    )
    outcome = gpu_check.run_step(
        gpu_check.Step("operator", 60, broken.commands, gpu_check.operator_table), tmp_path
    )
    assert outcome.verdict == gpu_check.FAILED and len(outcome.table) == 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys, tmp_path):
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "This check needs an NVIDIA GPU, and torch sees no CUDA device here.\n"
    )


def test_the_steps_that_there_are(capsys):
    assert gpu_check.main(["--list"]) == 0
    printed = capsys.readouterr().out
    names = ["tests", "memcheck", "racecheck", "initcheck", "operator", "network", "detection", "ncu"]
    assert [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")] == names
    assert gpu_check.main(["--list", "--steps", "ncu,tests"]) == 0
    assert capsys.readouterr().out.startswith("tests      at most 100 s\n")
    with pytest.raises(SystemExit):
        gpu_check.main(["--steps", "tests,nsys"])
    assert "There is no step 'nsys'; there are tests, memcheck," in capsys.readouterr().err


def test_the_benchmarks_understand_their_commands(tmp_path):
    steps = {step.name: step for step in gpu_check.all_steps(tmp_path)}
    for name, module in (("operator", operator), ("network", network), ("detection", network)):
        (command,) = steps[name].commands
        assert command[:3] == [sys.executable, "-m", module.__name__]
        arguments = [argument for argument in command[3:] if argument not in ("--launches", "graph")]
        options = module.parse([*arguments, "--device", "cpu"])
        assert options.output == tmp_path / f"{name}.csv"


def test_sanitizers_see_each_kernel_in_memory_of_its_own(tmp_path):
    steps = {step.name: step for step in gpu_check.all_steps(tmp_path)}
    for name in ("memcheck", "racecheck", "initcheck"):
        (command,) = steps[name].commands
        assert command[command.index("--tool") + 1] == name
        assert command[-2:] == [sys.executable, "tests/instances.py"]
        assert ("kns=involution" in command) == (name != "initcheck")
        assert ("PYTORCH_NO_CUDA_MEMORY_CACHING" in steps[name].environment) == (name != "racecheck")
    for name in ("tests", "memcheck", "racecheck", "initcheck"):
        assert steps[name].environment["INVOLUTION_FUSED_BACKWARD"] == "1"


def test_what_a_sanitizer_found(tmp_path):
    log = tmp_path / "memcheck.log"
    report = [f"========= Invalid __shared__ read of size 4 bytes {i}" for i in range(9)]
    log.write_text("\n".join([*report, "=========     at march<float>", "========= ERROR SUMMARY: 9 errors"]))
    assert gpu_check.sanitizer("memcheck").table(log) == [*report[:6], "and 3 more"]


# --- Tables -----------------------------------------------------------------------------------------------

COLUMNS = list(itertools.product(("contiguous", "channels_last"), ("float32", "bfloat16")))


def operator_rows() -> list[dict]:
    """What the step leaves, as far as the table reads it."""
    shapes = [case.name for case in select(["rednet-*", "detection", "mask-head"], [32])]
    rows = []
    for case, (layout, dtype), operation in itertools.product(shapes, COLUMNS, OPERATIONS):
        row = {"case": case, "operation": operation, "dtype": dtype, "layout": layout, "refused": None}
        row.update(kernel_us=123.45, copy_share=0.25 if dtype == "float32" else 0.5, baselines={})
        if (layout, dtype) == COLUMNS[0]:
            row["baselines"] = {"official": {"ratio": 1.5}}
            if case == "rednet-4":
                row["copy_share"] = 1.0
        rows.append(row)
    rows[-1].update(refused="it is wrong", kernel_us=None, copy_share=None)
    return rows


def network_rows() -> list[dict]:
    settings = itertools.product(network.MODES, ("contiguous", "channels_last"), (1, 64), network.LAUNCHES)
    return [
        {"mode": mode, "layout": layout, "batch": batch, "launch": launch, "ratio": 2.0}
        | {"rednet50": {"ms": 20.0 * batch}, "resnet50": {"ms": 10.0 * batch}}
        for mode, layout, batch, launch in settings
    ]


def written(folder: Path, name: str, rows: list[dict]) -> Path:
    """The log beside which the rows are."""
    document = {"benchmark": name, "environment": {}, "options": {}, "results": rows}
    results.write(document, folder / f"{name}.csv")
    return folder / f"{name}.log"


def test_times_of_the_operator(tmp_path):
    head, *lines, means = gpu_check.operator_table(written(tmp_path, "operator", operator_rows()))
    assert len(lines) == 10 * 3
    assert (
        head.split()
        == "us, share of a copy float32 contiguous bfloat16 contiguous float32 last bfloat16 last official".split()
    )
    assert lines[0].split() == "rednet-stem forward 123.5 25% 123.5 50% 123.5 25% 123.5 50% 1.50x".split()
    assert lines[-1].split()[-2:] == ["REFUSED", "1.50x"]
    # Of ten shapes in float32 one reaches all of a copy's speed: 0.25 ** 0.9.
    assert means.split() == ["geometric", "mean", "29%", "50%", "25%", "50%"]


def test_times_of_the_networks(tmp_path):
    _, *lines = gpu_check.network_table(written(tmp_path, "network", network_rows()))
    assert len(lines) == 12
    assert (
        lines[3].split()
        == "inference batch 64, graph 1280.00 / 640.00 = 2.00 1280.00 / 640.00 = 2.00".split()
    )
    assert lines[2].split() == "inference batch 64 1280.00 / 640.00 = 2.00 1280.00 / 640.00 = 2.00".split()


NVTX = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
METRICS = {
    ncu.DURATION: "ns",
    ncu.INSTRUCTIONS: "inst",
    ncu.OCCUPANCY: "%",
    ncu.DRAM[0]: "%",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_long_scoreboard_not_issued_per_issue_active.ratio": "inst",
    "smsp__average_warps_issue_stalled_selected_per_issue_active.ratio": "inst",
}
SIGNATURE = (
    "void involution::(anonymous namespace)::march<involution::BFloat16, (int)7, (bool)0>(involution::P, int)"
)


def ncu_output(kernels: list[tuple[str, str, list[str]]], units: dict[str, str] = METRICS) -> str:
    """A log as the step leaves it: what the program printed, then ncu's table."""
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerow(["ID", "Process ID", NVTX, "Kernel Name", "Block Size", *units])
    writer.writerow([""] * 5 + list(units.values()))
    for number, (label, name, values) in enumerate(kernels):
        ranges = f'140  "<default domain>:{label}:none:none:none:none:none:none" '
        writer.writerow([number, 140, ranges, name, "(128, 1, 1)", *values])
    return f"$ ncu ...\n==PROF== Connected to process 140\nrednet-1\n{file.getvalue()}"


def test_the_profile_of_a_call():
    call = ncu.calls()[0]
    assert call.label == "rednet-1/forward/float32/contiguous"
    assert call.positions == 32 * 4 * 56 * 56
    values = ["195,100", f"{45 * call.positions:,}", "24.06", "16.5", "1.25", "3.75", "9.5", "9.9"]
    (kernel,) = ncu.parse(ncu_output([(call.label, SIGNATURE, values)]), ncu.calls())
    assert kernel == ncu.Kernel(
        "march<BFloat16, 7, 0>", call, 195.1, 45 * call.positions, 24.06, 16.5, "long_scoreboard 3.8"
    )


def test_a_call_of_several_kernels_is_one_line():
    call = next(call for call in ncu.calls() if call.label.startswith("rednet-2-down/input_gradient"))
    half = f"{5 * call.positions}"
    short = (call.label, "void short_kernel<float>(int)", ["4000", half, "n/a", "10", "2", "1", "0", "0"])
    longer = (call.label, "void long_kernel<float>(int)", ["6500", half, "55.5", "n/a", "1", "n/a", "0", "0"])
    stranger = ("warm-up", "void fill(int)", ["9000", "1", "1", "1", "1", "1", "1", "1"])
    head, case, line, rest = ncu.table(ncu_output([short, longer, stranger]))
    assert head.split() == ["n", "us", "instr", "occup", "DRAM", "stall", "kernel"]
    assert case == "rednet-2-down: batch 32, 128 channels, 56x56, kernel 7x7 stride 2"
    assert (
        line.split()
        == "input_gradient float32 contiguous 2 10.5 10.0 56% - barrier 1.0 long_kernel<float>".split()
    )
    assert rest == "1 of 3 kernels belong to no call that is known here."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM", "no line starts with the column ID"),
        (ncu_output([]), "ncu profiled no kernel"),
        (ncu_output([("a", "k", ["1"])], {ncu.DURATION: "fortnight"}), "'fortnight', which is not a unit"),
        (ncu_output([("a", "k", ["1"])], {ncu.OCCUPANCY: "%"}), "no column 'gpu__time_duration.sum'"),
        (ncu_output([("a", "k", ["n/a"])], {ncu.DURATION: "us"}), "measured no time of 'k', but 'n/a'"),
    ],
)
def test_a_profile_that_is_none_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        ncu.table(text)


def test_units_of_time():
    for unit, expected in (("us", 2), ("usecond", 2), ("ms", 2000), ("nsecond", 0.002), ("second", 2e6)):
        (kernel,) = ncu.parse(ncu_output([("a", "k", ["2"])], {ncu.DURATION: unit}), [])
        assert kernel.microseconds == pytest.approx(expected)
        assert (kernel.call, kernel.instructions, kernel.dram, kernel.stall) == (None, None, None, None)


def test_what_is_profiled():
    labels = [call.label for call in ncu.calls()]
    assert len(labels) == 2 * 3 * 2 * 2
    assert not [pair for pair in itertools.permutations(labels, 2) if pair[0] in pair[1]]


def test_the_whole_summary_is_one_page(tmp_path):
    values = ["195100", "1000000000", "24", "16", "1", "math_pipe_throttle 3", "0", "0"]
    profile = ncu_output([(call.label, SIGNATURE, values) for call in ncu.calls()])
    pyramids = [row for row in network_rows() if row["launch"] == "graph" and row["batch"] == 64]
    tables = {
        "tests": [f"FAILED tests/test_gpu.py::test_number_{i}[{'x' * 200}]" for i in range(11)],
        "operator": gpu_check.operator_table(written(tmp_path, "operator", operator_rows())),
        "network": gpu_check.network_table(written(tmp_path, "network", network_rows())),
        "detection": gpu_check.network_table(written(tmp_path, "detection", pyramids)),
        "ncu": ncu.table(profile),
    }
    outcomes = [
        gpu_check.Outcome(step.name, gpu_check.TIMED_OUT, 100, tmp_path / f"{step.name}.log", "why" * 99, [])
        for step in gpu_check.all_steps(tmp_path)
    ]
    outcomes = [
        gpu_check.Outcome(*list(vars(outcome).values())[:-1], tables.get(outcome.name, []))
        for outcome in outcomes
    ]
    lines = gpu_check.page("NVIDIA H100 80GB HBM3, torch 2.11.0+cu130: 0 of 8 steps passed", outcomes)
    assert len(lines) <= 104 and max(map(len, lines)) <= gpu_check.WIDTH
    assert all(line == line.rstrip() for line in lines)


# --- Problems for the sanitizers --------------------------------------------------------------------------


def test_every_kind_of_kernel_has_a_problem():
    chosen = list(instances.instances())
    assert len(chosen) == len(set(chosen)) == 288
    found = {
        (
            operation,
            case.dtype,
            case.kernel,
            case.stride,
            *(getattr(case, f"{role}_layout") for role in instances.OPERANDS[operation]),
        )
        for operation, case in chosen
    }
    formats = ("contiguous", "channels_last")
    squares = [((width, width), (stride, stride)) for width in (3, 5, 7) for stride in (1, 2)]
    for operation, dtype, (kernel, stride), *layouts in itertools.product(
        cases.OPERATIONS, instances.DTYPES, squares, formats, formats
    ):
        assert (operation, dtype, kernel, stride, *layouts) in found
    for operation, stride, layout in itertools.product(cases.OPERATIONS, (1, 2), formats):
        assert (operation, torch.float32, (9, 9), (stride, stride), layout, layout) in found
    for operation in cases.OPERATIONS:
        own = [case for name, case in chosen if name == operation]
        assert {case.axes for case in own} == {1, 2, 3}
        assert {case.dtype for case in own} == set(cases.DTYPES)
        assert {(1, 7), (7, 3), (4, 4), (3, 3, 3)} <= {case.kernel for case in own}
        assert {(1, 2), (2, 1)} <= {case.stride for case in own}
        assert {(1, 2), (1, 4)} <= {case.dilation for case in own}
        for dtype, (kernel, stride) in itertools.product(instances.DTYPES, squares):
            some = [case for case in own if (case.dtype, case.kernel, case.stride) == (dtype, kernel, stride)]
            assert {case.channels_per_group for case in some} == {8, 16, 32}
            for layout in formats:  # of the first operand
                widths = [
                    case.channels_per_group
                    for case in some
                    if getattr(case, f"{instances.OPERANDS[operation][0]}_layout") == layout
                ]
                special = [
                    width == 16 or (operation != "local_correlation" and width == 32) for width in widths
                ]
                assert sorted(special) == [False, True]


def test_all_problems_come_out_right_on_the_cpu(capsys):
    assert instances.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 361 and lines[-1] == "Of 360 results all agree with the float64 reference."
    assert lines[0].startswith(
        "1/360 involution float32, input 9x17, kernel 3x3, stride 1x1, dilation 1x1, 16 "
    )
    assert lines[335].startswith("336/360 fused_involution bfloat16, input 8x24, kernel 7x7, stride 2, 128 ")
    assert lines[-2].startswith("360/360 fused_involution_backward bfloat16, of the weight, input 8x24, 128 ")


def test_every_fused_kernel_has_a_problem():
    found = {
        (case.window.dtype, case.window.kernel[0], case.window.stride[0], case.reduced)
        for case in instances.fused_instances()
    }
    assert found == set(itertools.product(instances.DTYPES[1:], (3, 5, 7), (1, 2), (16, 32, 64, 128)))
    found = {
        (name, case.window.dtype, case.reduced) for name, _, case in instances.fused_backward_instances()
    }
    names = ("input", "features", "weight")
    assert found == set(itertools.product(names, instances.DTYPES[1:], (16, 32, 64, 128)))


def test_a_wrong_result_is_found(capsys, monkeypatch):
    right = instances.operator

    def wrong(operation, *arguments):
        result = right(operation, *arguments)
        if operation == "local_correlation" and result.dtype == torch.float64:
            result.view(-1)[-1] += 1e-3
        return result

    monkeypatch.setattr(instances, "operator", wrong)
    assert instances.main(["--device", "cpu"]) == 1
    *_, complaint, verdict = capsys.readouterr().out.splitlines()
    assert complaint.startswith("WRONG: local_correlation float64, input 9x17, kernel 7x7")
    assert verdict == "Of 360 results 1 are wrong."
