"""The benchmark of the built-in scenes: a short run of each task, and what it records."""

from __future__ import annotations

import pytest
from torch import nn
from training_cases import need_libraries

need_libraries()

from benchmarks import results, scenes
from involution import Involution2d
from involution.models import blocks


@pytest.mark.parametrize("task", ["instance", "segmentation"])
def test_a_run_of_both_networks(task, tmp_path):
    path = tmp_path / "scenes.csv"
    short = ["--data.train=8", "--data.test=2", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    for layers in scenes.LAYERS:  # the second run keeps the row of the first
        scenes.main(["--tasks", task, "--layers", layers, "--threads=1", f"--output={path}", "--", *short])
    ours, theirs = sorted(
        results.load(path, "scenes")["results"], key=lambda row: row["layers"], reverse=True
    )
    assert (ours["layers"], theirs["layers"]) == scenes.LAYERS
    assert ours["parameters"] < theirs["parameters"] and ours["epochs"] == theirs["epochs"] == 1
    assert ours["cpu_seconds"] > 0 and ours["scores"].keys() == theirs["scores"].keys()
    assert ("miou" in ours["scores"]) == (task == "segmentation")
    assert blocks.Involution2d is Involution2d  # again


def test_a_dense_convolution_takes_what_an_involution_takes():
    layer = scenes.dense(6, 7, 2, dilation=3, group_channels=2, reduction_ratio=4)
    assert isinstance(layer, nn.Conv2d) and layer.weight.shape == (6, 6, 3, 3)
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 2), (3, 3), (3, 3))
