"""Turns results into a roofline picture and the README's table.

    python -m benchmarks.plot benchmarks/results/DEVICE.csv [--output FILE.png] [--readme README.md]

Prints the table as Markdown. With ``--readme`` it also replaces what stands between the lines
``<!-- benchmark:begin -->`` and ``<!-- benchmark:end -->`` of that file. The picture needs matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import results
from .cases import OPERATIONS

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
COLOURS = dict(zip(OPERATIONS, ("#0072b2", "#d55e00", "#009e73"), strict=True))
MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^", "float64": "D"}

Row = dict[str, Any]


def timed(document: dict[str, Any]) -> list[Row]:
    """The rows that have a time."""
    return [row for row in document["results"] if row["kernel_us"] is not None]


def problem(row: Row) -> str:
    """A row's shape in words."""
    space = "x".join(map(str, row["input_size"]))
    kernel = "x".join(map(str, row["kernel_size"]))
    stride = f", stride {row['stride']}" if row["stride"] != 1 else ""
    return f"{row['batch']} x {row['channels']} x {space}, K {kernel}{stride}"


def markdown(document: dict[str, Any]) -> str:
    """A row for each problem, dtype and layout; under each operation its time, share of a copy and ratios."""
    rows = timed(document)
    baselines = list(
        dict.fromkeys(name for row in rows for name, baseline in row["baselines"].items() if "us" in baseline)
    )
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((problem(row), row["dtype"], row["layout"]), {})[row["operation"]] = row
    operations = [name for name in OPERATIONS if any(name in group for group in groups.values())]
    shown = ["time", "of copy", *baselines]
    header = ["problem", "dtype", "layout"]
    header += [f"{operation.replace('_', ' ')}: {', '.join(shown)}" for operation in operations]
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    for key, group in groups.items():
        cells = [*key, *(_cell(group.get(operation), baselines) for operation in operations)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _caption(document)])


def _cell(row: Row | None, baselines: Sequence[str]) -> str:
    if row is None:
        return ""
    ratios = (row["baselines"].get(name, {}).get("ratio") for name in baselines)
    shares = [f"{row['kernel_us']:,.1f} us", f"{row['copy_share']:.0%}"]
    return ", ".join([*shares, *("-" if ratio is None else f"{ratio:.2g}x" for ratio in ratios)])


def _caption(document: dict[str, Any]) -> str:
    about = document["environment"]
    cuda = f", CUDA {about['cuda']}, driver {about['driver']}" if about["device_type"] == "cuda" else ""
    commit = f", commit {about['commit'][:10]}" if about["commit"] else ""
    changed = " with uncommitted changes" if about.get("uncommitted_changes") else ""
    cold = "cold cache" if about.get("cold") else "cache not certainly cold"
    return (
        f"{about['device']}, torch {about['torch']}{cuda}{commit}{changed}, {about['date'][:10]}. "
        f'Median time with {cold}; "of copy" is the time of a copy within the device that moves the bytes of '
        "an ideal implementation, over ours; a baseline's number is its time over ours. depthwise is a "
        "convolution with static kernels."
    )


def insert(readme: Path, table: str) -> bool:
    """Replaces what stands between the markers; False, and nothing is written, where they are not."""
    text = readme.read_text("utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        return False
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf-8")
    return True


def draw(document: dict[str, Any], path: Path) -> None:
    """Work done per second over work per byte, under the roof of the copy, and the share of it reached."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = timed(document)
    if not rows:
        raise ValueError("There is nothing to draw: no result has a time.")
    intensity = [2 * row["multiply_adds"] / row["ideal_bytes"] for row in rows]
    done = [2 * row["multiply_adds"] / row["kernel_us"] * 1e-3 for row in rows]  # GFLOP/s
    # The roof is the copy's: the fastest one, since small copies are slower.
    bandwidth = max(row["ideal_bytes"] / row["copy_us"] * 1e-3 for row in rows)  # GB/s

    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, max(4.5, 0.2 * len({_label(r) for r in rows}) + 1.5)), layout="constrained"
    )
    reach = [min(intensity) / 1.5, max(intensity) * 1.5]
    left.plot(reach, [bandwidth * at for at in reach], color="black", label=f"copy: {bandwidth:,.0f} GB/s")
    seen = set()
    for row, x, y in zip(rows, intensity, done, strict=True):
        key = f"{row['operation'].replace('_', ' ')}, {row['dtype']}"
        style = {"color": COLOURS[row["operation"]], "marker": MARKERS[row["dtype"]]}
        filled = "full" if row["layout"] == "contiguous" else "none"
        label = None if key in seen else key
        left.plot(x, y, linestyle="", fillstyle=filled, label=label, **style)
        seen.add(key)
    left.set(xscale="log", yscale="log", xlabel="FLOP per ideal byte", ylabel="GFLOP/s")
    left.legend(fontsize=7)
    left.set_title("Under the roof of memory (hollow: not contiguous)", fontsize=10)

    labels = list(dict.fromkeys(_label(row) for row in rows))
    for row in rows:
        style = {"color": COLOURS[row["operation"]], "marker": MARKERS[row["dtype"]]}
        right.plot(row["copy_share"], labels.index(_label(row)), linestyle="", **style)
    right.axvline(1, color="black")
    right.set_yticks(range(len(labels)), labels, fontsize=7)
    right.invert_yaxis()
    right.set_xlim(left=0)
    right.set_xlabel("share of a copy of the same bytes")
    right.grid(axis="x", alpha=0.3)
    about = document["environment"]
    figure.suptitle(f"{about['device']}, torch {about['torch']}, {about['date'][:10]}", fontsize=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _label(row: Row) -> str:
    layout = "" if row["layout"] == "contiguous" else f" {row['layout']}"
    return f"{row['case']} b{row['batch']} {row['dtype']}{layout}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, draws the picture and edits the README."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="results of benchmarks.operator")
    parser.add_argument("--output", type=Path, help="picture to write (default: the results' name with .png)")
    parser.add_argument("--readme", type=Path, help="page whose table of results is replaced")
    options = parser.parse_args(arguments)
    try:
        document = results.load(options.results)
    except (OSError, ValueError) as error:
        sys.exit(f"{options.results} cannot be read: {error}")
    table = markdown(document)
    print(table)
    if options.readme and not insert(options.readme, table):
        sys.exit(f"{options.readme} does not have one line {BEGIN} and, after it, one line {END}.")
    output = options.output or options.results.with_suffix(".png")
    try:
        draw(document, output)
    except ModuleNotFoundError as error:
        sys.exit(f"The picture needs {error.name}: pip install 'involution[bench]'.")
    except ValueError as error:
        sys.exit(str(error))
    print(f"Drawn to {output}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
