"""What the tests of exported files share: one checkpoint and its files, made once for a whole run of the tests."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn

import involution
from involution.export import comparison, export_model, load
from involution.export.__main__ import main
from involution.export.formats import Runner
from involution.models import create_model
from involution.training.checkpoint import VERSION


class ExportedFiles(NamedTuple):
    """A checkpoint, the files that the command line made of it, and what it printed."""

    checkpoint: Path
    pt2: Path
    aoti: Path
    onnx: Path | None  # where the extra is not installed
    printed: str

    def images(self) -> tuple[Tensor, Tensor]:
        """All test images of the digits, from 0 to 1, and their labels."""
        return digits()[1]


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and labels to train and to test on, as `involution.training.Digits` shares them."""
    reason = "the digits come with scikit-learn, which is not installed"
    datasets = pytest.importorskip("sklearn.datasets", reason=reason)
    selection = pytest.importorskip("sklearn.model_selection", reason=reason)
    images, labels = datasets.load_digits(return_X_y=True)
    parts = selection.train_test_split(images / 16, labels, test_size=0.2, random_state=0, stratify=labels)
    x, test_x = (torch.tensor(part, dtype=torch.float32).view(-1, 1, 8, 8) for part in parts[:2])
    return (x, torch.tensor(parts[2])), (test_x, torch.tensor(parts[3]))


def write_checkpoint(path: Path) -> Path:
    """A small RedNet whose last layer was fitted to some digits, in the format of ``involution.train``."""
    torch.manual_seed(0)
    (x, y), _ = digits()
    std, mean = torch.std_mean(x, correction=0)
    arguments = {"in_channels": 1, "num_classes": 10}
    model = create_model("rednet_tiny", **arguments)
    images = (x[:512] - mean) / std
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model(images)  # leaves its statistics in the normalisations
        features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        targets = torch.nn.functional.one_hot(y[:512]).float()
        extended = torch.cat([features, torch.ones(len(features), 1)], 1)
        fitted = torch.linalg.lstsq(extended, targets, driver="gelsd").solution
        model.head.weight.copy_(fitted[:-1].t())
        model.head.bias.copy_(fitted[-1])
    own = {
        "version": VERSION,
        "task": "Classification",
        "model": {"name": "rednet_tiny", "arguments": arguments},
        "data": {"name": "Digits", "arguments": {}},
        "classes": [str(digit) for digit in range(10)],
        "input": {"channels": 1, "size": [8, 8], "mean": [mean.item()], "std": [std.item()]},
        "precision": "32-true",
        "metrics": {},
    }
    torch.save({"state_dict": model.state_dict(), "epoch": 0, "involution": own}, path)
    return path


def need_aoti() -> None:
    """Skips, and says why, where AOTInductor cannot write files."""
    if involution.build_info()["extension"] is None:
        pytest.skip("the library of operators is not compiled")
    if not any(shutil.which(compiler) for compiler in ("g++", "c++", "clang++")):
        pytest.skip("no C++ compiler")


def through_a_file(model: nn.Module, example: Tensor, folder: Path, format: str) -> Runner:
    """The model, written in a format and loaded again."""
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason="the extra 'onnx' is not installed")
    if format == "aoti":
        need_aoti()
    # Loops of single numbers: Inductor thinks three times as long about vectors, which are tested with classifiers.
    with torch._inductor.config.patch({"cpp.simdlen": 0}):
        path = export_model(model, example, folder / f"model.{'onnx' if format == 'onnx' else 'pt2'}", format)
    return load(path, format)[0]


def export_files(folder: Path) -> ExportedFiles:
    """Writes the checkpoint and its pt2 and aoti files; skips, and says why, where that cannot be."""
    need_aoti()
    checkpoint = write_checkpoint(folder / "best.ckpt")
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    formats = ["pt2", "aoti", *(["onnx"] if has_onnx else [])]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), mock.patch.object(comparison, "MEASURE_SECONDS", 0.05):
        status = main([str(checkpoint), "--format", *formats])
    assert status == 0
    files = [folder / name for name in ("best.pt2", "best.aoti.pt2", "best.onnx")]
    return ExportedFiles(checkpoint, files[0], files[1], files[2] if has_onnx else None, printed.getvalue())
