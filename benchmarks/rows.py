"""A row of the operator's results, as text; the module of the benchmark explains the columns."""

from __future__ import annotations

from typing import Any

NOISY = 2 / 3  # of the median; a row whose fastest sample is below that is marked as noisy


def _noise(median: float, fastest: float) -> str:
    return "~" if fastest < NOISY * median else ""


def describe(row: dict[str, Any]) -> str:
    """A row of the results as text."""
    head = f"  {row['operation']:<16}{row['dtype']:<10}{row['layout']:<17}"
    if row["refused"]:
        return f"{head}REFUSED: {row['refused']}"
    host = f"{row['host_us']:.1f}/{row['host_grad_us']:.1f}"
    noise = _noise(row["kernel_us"], row["fastest_us"])
    text = f"{head}{row['kernel_us']:>10.1f}{noise:1}{row['gb_per_s']:>9.4g}{row['copy_share']:>9.1%}"
    text += "        -" if row["bound_share"] is None else f"{row['bound_share']:>9.1%}"
    text += "        -" if row["single_us"] is None else f"{row['single_us'] / row['warm_us']:>9.2f}"
    scratch = row["scratch_bytes"] / 2**20
    text += f"{row['warm_us']:>11.1f}{scratch:>9.4g}{host:>13}  "
    parts = []
    for name, baseline in row["baselines"].items():
        if "ratio" in baseline:
            parts.append(f"{name} {baseline['ratio']:.3g}x{_noise(baseline['us'], baseline['fastest_us'])}")
        else:
            reason, why = next(iter(baseline.items()))
            parts.append(f"{name} {reason.upper() if reason == 'refused' else reason} ({why})")
    return text + ", ".join(parts)


HEADER = (
    f"  {'operation':<16}{'dtype':<10}{'layout':<17}{'kernel us':>11}{'GB/s':>9}{'of copy':>9}"
    f"{'of bound':>9}{'1 thread':>9}{'warm us':>11}{'scratch':>9}{'host us':>13}  baselines' time over ours"
)


def wrong(row: dict[str, Any]) -> bool:
    """Whether a result of the row was refused a time."""
    return row["refused"] is not None or any("refused" in baseline for baseline in row["baselines"].values())
