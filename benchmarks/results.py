"""The record of a run: a CSV file with a line for each measurement, below comments with what it was made on.

The newest run of each device and benchmark is kept in benchmarks/results: ``DEVICE.csv`` of the operator,
``DEVICE-network.csv``, ``DEVICE-detection.csv``, ``DEVICE-layer.csv`` and ``DEVICE-scenes.csv``. A file begins with
its environment and options, one ``# name: value`` a line, where the value is JSON. In the table a size is written
``56x56``, an empty cell is a value that there is none of, and a dot stands between a part and its column:
``baselines.unfold.us``. Numbers have nine significant digits.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .environment import ROOT

FOLDER = ROOT / "benchmarks" / "results"
QUICK_FOLDER = ROOT / "build" / "benchmarks"  # a quick run is no record

_NUMBER = (int, float)
_OPTIONAL = (int, float, type(None))
_OPTIONAL_TEXT = (str, type(None))
_SIZES = ("input_size", "kernel_size", "size")  # columns that hold lists

_ENVIRONMENT = {
    "date": str,
    "device": str,
    "device_type": str,
    "driver": _OPTIONAL_TEXT,
    "torch": str,
    "cuda": _OPTIONAL_TEXT,
    "commit": _OPTIONAL_TEXT,
    "clocks": str,
}
_COLUMNS: dict[str, dict[str, Any]] = {
    "operator": {
        "case": str,
        "batch": int,
        "channels": int,
        "group_width": int,
        "input_size": list,
        "kernel_size": list,
        "stride": int,
        "operation": str,
        "dtype": str,
        "layout": str,
        "ideal_bytes": int,
        "multiply_adds": int,
        "error": _OPTIONAL,
        "refused": _OPTIONAL_TEXT,  # why there is no time
        "kernel_us": _OPTIONAL,  # median, cold
        "fastest_us": _OPTIONAL,
        "method": _OPTIONAL_TEXT,
        "copies": (int, type(None)),  # of the operands, that the cold time takes turns over
        "warm_us": _OPTIONAL,
        "gb_per_s": _OPTIONAL,
        "copy_us": _OPTIONAL,  # a copy that moves as many bytes
        "copy_share": _OPTIONAL,
        "bound_us": _OPTIONAL,  # on a CPU: the larger of the copy's time and that of the multiply-adds
        "bound_share": _OPTIONAL,
        "single_us": _OPTIONAL,  # on a CPU: warm, with one thread
        "host_us": _OPTIONAL,
        "host_grad_us": _OPTIONAL,
        "scratch_bytes": (int, type(None)),  # that a call allocates beside its result
        "baselines": dict,
    },
    "network": {
        "mode": str,
        "batch": int,
        "layout": str,
        "dtype": str,
        "launch": str,
        "size": list,
        "rednet50": dict,
        "resnet50": dict,
        "ratio": _NUMBER,
        "fastest_ratio": _NUMBER,
    },
    "layer": {
        "case": str,
        "batch": int,
        "channels": int,
        "mode": str,
        "input_size": list,
        "kernel_size": list,
        "stride": int,
        "dtype": str,
        "not_fused": _OPTIONAL_TEXT,
        "layers": dict,
        "ratios": dict,
    },
    "scenes": {
        "task": str,
        "layers": str,
        "epochs": int,
        "parameters": int,
        "cpu_seconds": _NUMBER,
        "scores": dict,
    },
    "tune": {
        "case": str,
        "dtype": str,
        "layout": str,
        "operation": str,
        "copy_us": _NUMBER,
        "us": _NUMBER,
        "plan": dict,  # empty: the library's own
    },
}
_COLUMNS["detection"] = _COLUMNS["network"]
_BASELINE = {"us": _NUMBER, "fastest_us": _NUMBER, "ratio": _NUMBER, "method": str, "error": _NUMBER}
_NETWORK = {"ms": _NUMBER, "fastest_ms": _NUMBER, "samples": int}
_LAYER = {"us": _NUMBER, "fastest_us": _NUMBER, "method": str}


def validate(document: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the place, if a document is not what the benchmarks write."""
    columns = _COLUMNS.get(document["benchmark"])
    if columns is None:
        raise ValueError(f"There is no benchmark {document['benchmark']!r}; there are {', '.join(_COLUMNS)}.")
    _has(document["environment"], _ENVIRONMENT, "The environment")
    for number, row in enumerate(document["results"]):
        where = f"Result {number}"
        _has(row, columns, where)
        if "kernel_us" in columns and (row["kernel_us"] is None) != (row["refused"] is not None):
            raise ValueError(f"{where} must have either a time or the reason why it was refused.")
        for name, baseline in row.get("baselines", {}).items():
            if not {"skipped", "failed", "refused"} & baseline.keys():
                _has(baseline, _BASELINE, f"{where}, baseline {name},")
        for name, layer in row["layers"].items() if columns.get("layers") is dict else ():
            _has(layer, _LAYER, f"{where}, layer {name},")
        for name in ("rednet50", "resnet50"):
            if name in columns:
                _has(row[name], _NETWORK, f"{where}, network {name},")


def _has(values: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> None:
    for name, kind in fields.items():
        if name not in values:
            raise ValueError(f"{where} lacks {name!r}.")
        if not isinstance(values[name], kind):
            raise ValueError(f"{where} has {values[name]!r} as {name!r}, which is of the wrong type.")


def load(path: Path, benchmark: str = "operator") -> dict[str, Any]:
    """Reads and validates the record of a benchmark."""
    document = read(path)
    if document["benchmark"] != benchmark:
        raise ValueError(
            f"It holds results of benchmarks.{document['benchmark']}, not of benchmarks.{benchmark}."
        )
    validate(document)
    return document


def save(document: Mapping[str, Any], path: Path) -> None:
    """Validates and writes a document."""
    validate(document)
    write(document, path)


def read(path: Path) -> dict[str, Any]:
    """Reads a document, whatever its columns are."""
    lines = path.read_text("utf-8").splitlines()
    about: dict[str, Any] = {}
    for line in lines:
        if line.startswith("# "):
            name, _, value = line[2:].partition(": ")
            about[name] = json.loads(value)
    if missing := {"benchmark", "options"} - about.keys():
        raise ValueError(f"Its comments lack {', '.join(sorted(missing))}: it is no record of a benchmark.")
    benchmark, options = about.pop("benchmark"), about.pop("options")
    table = csv.DictReader(line for line in lines if not line.startswith("# "))
    rows = []
    for number, cells in enumerate(table):
        # So the csv module marks what there is too much or too little of.
        if None in cells or None in cells.values():
            raise ValueError(f"Result {number} has another number of cells than the table has columns.")
        rows.append(_nested(cells))
    for name, kind in _COLUMNS.get(benchmark, {}).items():
        if kind is dict:
            for row in rows:  # of an empty part there is no column
                row.setdefault(name, {})
    return {"benchmark": benchmark, "environment": about, "options": options, "results": rows}


def write(document: Mapping[str, Any], path: Path) -> None:
    """Writes a document; a run that is interrupted leaves the last whole one."""
    about = {"benchmark": document["benchmark"], **document["environment"], "options": document["options"]}
    rows = [dict(_flat(row)) for row in document["results"]]
    text = io.StringIO()
    for name, value in about.items():
        print(f"# {name}: {json.dumps(value)}", file=text)
    columns = dict.fromkeys(name for row in rows for name in row)
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text.getvalue(), "utf-8")
    partial.replace(path)


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Cells by column."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            yield prefix + name, "x".join(map(str, value))
        elif isinstance(value, float):
            yield prefix + name, f"{value:.9g}"
        else:
            yield prefix + name, "" if value is None else str(value)


def _nested(cells: Mapping[str, str]) -> dict[str, Any]:
    """The row with these cells; a part lacks what its cells leave empty."""
    row: dict[str, Any] = {}
    for column, cell in cells.items():
        *parts, name = column.split(".")
        place = row
        if parts:
            place = row.setdefault(parts[0], {})
            if not cell:
                continue
            for part in parts[1:]:
                place = place.setdefault(part, {})
        place[name] = [int(size) for size in cell.split("x")] if column in _SIZES else _value(cell)
    return row


def _value(cell: str) -> int | float | str | None:
    if not cell:
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            pass
    return cell


def merge(document: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Puts the rows of an earlier document of the same machine, torch and commit before those of this one.

    Raises:
        ValueError: It is of another.
    """
    for key in ("device", "torch", "commit", "threads"):
        ours, theirs = document["environment"].get(key), earlier["environment"].get(key)
        if ours != theirs:
            raise ValueError(f"The earlier results are of another {key}: {theirs!r}, not {ours!r}.")
    document["results"][:0] = earlier["results"]
    document["options"] = {
        "parts": [*earlier["options"].get("parts", [earlier["options"]]), document["options"]]
    }


def default_path(document: Mapping[str, Any], quick: bool = False) -> Path:
    """Where the newest run of a device and benchmark is kept; a quick run goes to build/benchmarks.

    A device is called by its name without the size and kind of its memory; a CPU also by the instructions used.
    """
    about = document["environment"]
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", about["device"].lower()))
    words = [word for word in words if not re.fullmatch(r"\d+gb|hbm\w*", word)]
    if about["device_type"] == "cpu":
        words.append(about["built"]["cpu_capability"] or "python")
    if document["benchmark"] != "operator":
        words.append(document["benchmark"])
    return (QUICK_FOLDER if quick else FOLDER) / f"{'-'.join(words)}.csv"
