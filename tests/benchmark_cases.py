"""What the tests of the benchmarks share."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import (
    cases,
    operator,
    results,
)

ROOT = Path(__file__).resolve().parents[1]


CPU = torch.device("cpu")


SMALL = cases.Case("small", 2, 8, (6, 9), (3, 5), group_width=4)


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    output = tmp_path / "results.csv"
    code = operator.main(["--device", "cpu", "--quick", "--output", str(output), *arguments])
    return code, results.load(output)
