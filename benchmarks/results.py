"""The record of a run: one JSON document with what it was measured on and a row for every measurement."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"
SCHEMA = 1

_NUMBER = (int, float)
_OPTIONAL = (int, float, type(None))
_DOCUMENT = {"schema": int, "environment": dict, "options": dict, "results": list}
_ENVIRONMENT = {
    "date": str,
    "device": str,
    "device_type": str,
    "driver": (str, type(None)),
    "torch": str,
    "cuda": (str, type(None)),
    "commit": (str, type(None)),
    "clocks": str,
}
_ROW = {
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
    "refused": (str, type(None)),  # why there is no time
    "kernel_us": _OPTIONAL,  # median, cold
    "fastest_us": _OPTIONAL,
    "method": (str, type(None)),
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
    "rivals": dict,
}
# Not in every record of this schema.
_ADDED = {"scratch_bytes": int}  # that a call allocates beside its result, as for converting a storage format
_RIVAL = {"us": _NUMBER, "fastest_us": _NUMBER, "ratio": _NUMBER, "method": str, "error": _NUMBER}


def validate(document: Any) -> None:
    """Raises ValueError, naming the place, if a document is not what this module writes."""
    _has(document, _DOCUMENT, "The document")
    if document["schema"] != SCHEMA:
        raise ValueError(
            f"The document has schema {document['schema']}, but this program reads schema {SCHEMA}."
        )
    _has(document["environment"], _ENVIRONMENT, "The environment")
    for number, row in enumerate(document["results"]):
        where = f"Result {number}"
        _has(row, _ROW, where)
        _has(row, {name: kind for name, kind in _ADDED.items() if name in row}, where)
        if (row["kernel_us"] is None) != (row["refused"] is not None):
            raise ValueError(f"{where} must have either a time or the reason why it was refused.")
        for name, rival in row["rivals"].items():
            if not isinstance(rival, Mapping) or not {"skipped", "failed", "refused"} & rival.keys():
                _has(rival, _RIVAL, f"{where}, rival {name},")


def _has(value: Any, fields: Mapping[str, Any], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, but is {type(value).__name__}.")
    for name, kind in fields.items():
        if name not in value:
            raise ValueError(f"{where} lacks {name!r}.")
        if not isinstance(value[name], kind):
            raise ValueError(f"{where} has {value[name]!r} as {name!r}, which is of the wrong type.")


def load(path: Path) -> dict[str, Any]:
    """Reads and validates a document."""
    document = json.loads(path.read_text("utf-8"))
    validate(document)
    return document


def save(document: Mapping[str, Any], path: Path) -> None:
    """Validates and writes a document."""
    validate(document)
    write(document, path)


def write(document: Mapping[str, Any], path: Path) -> None:
    """Writes any document; a run that is interrupted leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    partial.replace(path)


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


def default_path(environment: Mapping[str, Any], prefix: str = "") -> Path:
    """``results/<prefix><device>-<date>.json``, with a number behind it if there is one already."""
    device = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", environment["device"].lower())).strip("-")
    stem = f"{prefix}{device}-{environment['date'][:10]}"
    names = [f"{stem}.json", *(f"{stem}-{number}.json" for number in range(2, 1000))]
    return next(FOLDER / name for name in names if not (FOLDER / name).exists())
