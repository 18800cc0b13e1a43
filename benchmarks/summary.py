"""What the rows of a run on a CPU say together: ratios of times, each within one run.

Forward plus backward is the sum of the three operations. Ratios over several shapes are those of summed times, so
that large shapes count for what they cost; the worst shape is named beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Row = dict[str, Any]


def _timed(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [
        row for row in rows if row["kernel_us"] and all(row[key] == value for key, value in wanted.items())
    ]


def _problem(row: Row) -> tuple[object, ...]:
    return row["case"], row["batch"], row["operation"]


def _name(row: Row) -> str:
    return f"{row['case']} b{row['batch']} {row['operation']}"


def _pairs(rows: Sequence[Row], key: str, one: str, other: str) -> Iterator[tuple[Row, Row]]:
    """Rows that differ in nothing else."""
    rest = "layout" if key == "dtype" else "dtype"
    found = {(_problem(row), row[rest]): row for row in _timed(rows, **{key: other})}
    for row in _timed(rows, **{key: one}):
        if (_problem(row), row[rest]) in found:
            yield row, found[_problem(row), row[rest]]


def _line(title: str, ratios: Sequence[tuple[float, float, str]], worst: Callable[..., Any]) -> list[str]:
    """Of (numerator, denominator, name): the ratio of the sums, and the worst of them."""
    if not ratios:
        return []
    total = sum(a for a, _, _ in ratios) / sum(b for _, b, _ in ratios)
    value, name = worst((a / b, name) for a, b, name in ratios)
    return [f"{title:<58}{total:>8.3g}   worst {value:.3g} ({name})"]


def summarise(rows: Sequence[Row]) -> list[str]:
    """Sentences with figures: over baselines, of the machine's bound, between dtypes, layouts and threads."""
    lines: list[str] = []
    usual = _timed(rows, dtype="float32", layout="contiguous")
    rednet = [row for row in usual if row["case"].startswith("rednet")]

    def over(baseline: str, among: Sequence[Row]) -> list[tuple[float, float, str]]:
        with_baseline = [row for row in among if "us" in row["baselines"].get(baseline, {})]
        return [(row["baselines"][baseline]["us"], row["kernel_us"], _name(row)) for row in with_baseline]

    forward = [row for row in rednet if row["operation"] == "forward"]
    lines += _line("unfold over ours, RedNet, forward", over("unfold", forward), min)
    lines += _line("unfold over ours, RedNet, forward and both gradients", over("unfold", rednet), min)
    lines += _line("reference over ours, all rows", over("reference", _timed(rows)), min)
    bounded = [row for row in _timed(rows, dtype="float32") if row["bound_us"]]
    for layout in dict.fromkeys(row["layout"] for row in bounded):
        seven = [row for row in bounded if row["layout"] == layout and row["kernel_size"][-1] == 7]
        shares = [(row["bound_us"], row["kernel_us"], _name(row)) for row in seven]
        lines += _line(f"share of the machine's bound, K = 7, {layout}", shares, min)
    for half in ("bfloat16", "float16"):
        pairs = [
            (a["kernel_us"], b["kernel_us"], _name(a)) for a, b in _pairs(rows, "dtype", half, "float32")
        ]
        lines += _line(f"time of {half} over float32", pairs, max)
    layouts = _pairs(_timed(rows, dtype="float32"), "layout", "channels_last", "contiguous")
    pairs = [(a["kernel_us"], b["kernel_us"], _name(a)) for a, b in layouts]
    lines += _line("time of channels_last over contiguous, float32", pairs, max)
    single = [(row["single_us"], row["warm_us"], _name(row)) for row in usual if row["single_us"]]
    lines += _line("time of one thread over all, warm", single, min)
    return lines
