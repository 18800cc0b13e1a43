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
from torch import Tensor

import involution
from involution.export import evaluate
from involution.export.__main__ import main
from involution.export.checkpoint import deployable, evaluation_images
from involution.models import create_model


class Deployment(NamedTuple):
    """A checkpoint, the files that the command line made of it, and what it printed."""

    checkpoint: Path
    pt2: Path
    aoti: Path
    onnx: Path | None  # where the extra is not installed
    printed: str

    def images(self) -> tuple[Tensor, Tensor]:
        """All test images of the digits, from 0 to 1, and their labels."""
        _, batches = evaluation_images(deployable(self.checkpoint)[1])
        images, labels = zip(*batches, strict=True)
        return torch.cat(images), torch.cat(labels)


def write_checkpoint(path: Path) -> Path:
    """A small RedNet whose last layer was fitted to some digits, in the format of ``involution.train``."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, which is not installed")
    from involution.training.checkpoint import save_checkpoint
    from involution.training.config import Config
    from involution.training.data import load_data

    torch.manual_seed(0)
    config = Config()
    data = load_data(config)
    arguments = {"in_channels": 1, "num_classes": 10}
    model = create_model("rednet_tiny", **arguments)
    images = (torch.stack([data.train.read(index) for index in range(512)]) - data.mean[0]) / data.std[0]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        model(images)  # leaves its statistics in the normalisations
        features = model.eval().forward_head(model.forward_features(images), pre_logits=True)
        targets = torch.nn.functional.one_hot(torch.tensor(data.train.labels[:512])).float()
        extended = torch.cat([features, torch.ones(len(features), 1)], 1)
        fitted = torch.linalg.lstsq(extended, targets, driver="gelsd").solution
        model.head.weight.copy_(fitted[:-1].t())
        model.head.bias.copy_(fitted[-1])
    content = {
        "model": {"name": "rednet_tiny", "arguments": arguments},
        "state_dict": model.state_dict(),
        "ema_state_dict": None,
        "optimizer": {},
        "scheduler": {},
        "scaler": None,
        "epoch": 1,
        "rng": [],
        "config": config.as_dict(),
        "classes": data.classes,
        "input": data.input,
        "metrics": {},
    }
    save_checkpoint(path, content)
    return path


def deploy(folder: Path) -> Deployment:
    """Writes the checkpoint and its pt2 and aoti files; skips, and says why, where that cannot be."""
    if involution.build_info()["extension"] is None:
        pytest.skip("the library of operators is not compiled")
    if not any(shutil.which(compiler) for compiler in ("g++", "c++", "clang++")):
        pytest.skip("no C++ compiler")
    checkpoint = write_checkpoint(folder / "best.pt")
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    formats = ["pt2", "aoti", *(["onnx"] if has_onnx else [])]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), mock.patch.object(evaluate, "MEASURE_SECONDS", 0.05):
        status = main([str(checkpoint), "--format", *formats])
    assert status == 0
    files = [folder / name for name in ("best.pt2", "best.aoti.pt2", "best.onnx")]
    return Deployment(checkpoint, files[0], files[1], files[2] if has_onnx else None, printed.getvalue())
