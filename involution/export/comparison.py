"""Do the files answer as the model does, how large are they, and how long do they take?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .formats import Runner

MEASURE_SECONDS = 0.5  # for each latency, after a warm-up
BATCH = 64


class Report(NamedTuple):
    """What one way to run the model does.

    Attributes:
        name: ``"eager"`` or the format.
        path: the file, or None for the model in Python.
        size: size of the file in bytes, or None.
        accuracy: share of the images whose highest score is the right class's, from 0 to 1, or None without labels.
        difference: the largest absolute difference of a score from the eager model's.
        latency: median time of one run in seconds, by batch size.
    """

    name: str
    path: Path | None
    size: int | None
    accuracy: float | None
    difference: float
    latency: dict[int, float]


def compare(
    runners: Mapping[str, tuple[Runner, Path | None]],
    batches: Iterable[tuple[Tensor, Tensor | None]],
    latency_batches: Sequence[int] = (1, BATCH),
) -> list[Report]:
    """Runs every runner on the same images, a batch at a time.

    Args:
        runners (mapping): Name to function and file; the first is what the others are
            compared with.
        batches (iterable): Images ``(B, channels, H, W)`` from 0 to 1, and labels
            ``(B,)`` or None where there are none.
        latency_batches (sequence of int): The batch sizes to measure. The time is a median over half a second of runs,
            with as many threads as ``torch.get_num_threads()``. Default: ``(1, BATCH)``

    Returns:
        A report for each runner.

    Raises:
        ValueError: there are no images.
        TypeError: a model has several outputs.
    """
    right = dict.fromkeys(runners, 0)
    difference = dict.fromkeys(runners, 0.0)
    seen, labelled = 0, True
    image: Tensor | None = None
    for images, labels in batches:
        if len(images) == 0:
            continue
        image = images[:1] if image is None else image
        seen += len(images)
        expected: Tensor | None = None
        for name, (run, _) in runners.items():
            scores = run(images)
            if not isinstance(scores, Tensor):
                raise TypeError(
                    f"Models of one output, the scores, are compared, but {name} has {len(scores)} outputs."
                )
            expected = scores if expected is None else expected
            difference[name] = max(difference[name], (scores - expected).abs().max().item())
            if labels is not None:
                right[name] += int((scores.argmax(1) == labels).sum())
        labelled = labelled and labels is not None
    if image is None:
        raise ValueError("There are no images to compare the exported files on.")
    return [
        Report(
            name,
            path,
            None if path is None else path.stat().st_size,
            right[name] / seen if labelled else None,
            difference[name],
            {batch: _median_time(run, image.repeat(batch, 1, 1, 1)) for batch in latency_batches},
        )
        for name, (run, path) in runners.items()
    ]


def _median_time(run: Runner, images: Tensor) -> float:
    for _ in range(3):
        run(images)
    times: list[float] = []
    until = time.perf_counter() + MEASURE_SECONDS
    while not times or time.perf_counter() < until:
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def table(reports: Sequence[Report]) -> str:
    """The reports as a table of text."""
    batches = list(reports[0].latency)
    head = ["", "size", "accuracy", "largest difference", *(f"batch {batch}" for batch in batches)]
    rows = [
        [
            report.name,
            "" if report.size is None else f"{report.size / 1e6:.2f} MB",
            "unknown" if report.accuracy is None else f"{100 * report.accuracy:.2f}%",
            f"{report.difference:.1e}",
            *(f"{1e3 * report.latency[batch]:.2f} ms" for batch in batches),
        ]
        for report in reports
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *others in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
