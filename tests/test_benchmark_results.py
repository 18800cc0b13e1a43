"""Records of the benchmark: written, added to, summed up, read, drawn."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_cases import CPU, ROOT, run

from benchmarks import (
    cases,
    environment,
    operator,
    plot,
    results,
    summary,
    timing,
    tune,
)


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
        unfold = row["baselines"]["unfold"]
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
    arguments = ["--ops", "forward", "--baselines", "reference"]
    code, first = run(tmp_path, *arguments)
    assert code == 0 and "us" in first["results"][0]["baselines"]["reference"]
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
        baselines = {"unfold": {"us": changes.pop("unfold")}} if "unfold" in changes else {}
        usual = {"bound_us": 50.0, "warm_us": 80.0, "single_us": 160.0, "kernel_size": [7, 7]}
        return {**row, "case": case, "baselines": baselines, **usual, **changes}

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

    def half_a_baseline(d):
        d["results"][2]["baselines"]["unfold"] = {"us": 1.0}

    def without_its_torch(d):
        d["environment"]["torch"] = None

    for damage, message in (
        (without_time, "Result 0 must have either a time"),
        (without_column, "Result 1 lacks 'copy_share'"),
        (of_nothing_known, "no benchmark 'weather'"),
        (half_a_baseline, "Result 2, baseline unfold, lacks"),
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
    rows[0]["baselines"] = {"unfold": {"us": 2.5, "ratio": 12345678.5}, "plain": {"skipped": 'no, "it" is'}}
    rows[1]["baselines"] = {"unfold": {"skipped": "1 GiB"}}
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
    least = {"network": 12, "layer": 12, "detection": 6, "scenes": 6}
    document = results.load(path, kind if kind in least else "operator")
    assert results.default_path(document) == path
    assert len(document["results"]) >= least.get(kind, 12)


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
