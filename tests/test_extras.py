"""Optional packages: imported by what needs them alone; if they are missing or do not fit, an error says what helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

USES = {
    "detection": ("involution.detection", "involution.detection"),
    "train": ("Training", "involution.train"),
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("extra", USES)
@pytest.mark.parametrize("broken", ["missing", "unfit"])
def test_torchvision_is_missing_or_does_not_fit(extra: str, broken: str, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    metadata = tmp_path / "torchvision-0.28.0.dist-info" / "METADATA"
    metadata.write_text("Name: torchvision\nVersion: 0.28.0\n")
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
        if broken == "unfit"
        else "raise ModuleNotFoundError('', name='torchvision')"
    )
    what, module = USES[extra]
    printed = run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import involution.training; involution.training.load_model  # which needs torch alone\n"
        f"try:\n    import {module}\nexcept ImportError as error:\n    print(error)"
    )
    if broken == "missing":
        assert f"{what} needs torchvision, which is not installed" in printed
        assert f"pip install -e '.[{extra}]'" in printed
    else:
        assert f"torchvision 0.28.0 does not work with torch {torch.__version__}" in printed
        assert "operator torchvision::nms does not exist" in printed
        assert "pip install --upgrade torch torchvision" in printed


def test_nothing_but_training_imports_the_trainer() -> None:
    libraries = ("lightning", "torchvision", "torchmetrics", "jsonargparse")
    modules = "involution.models, involution.export, involution.training, involution.export.onnx"
    assert run(f"import sys, {modules}\nprint([n for n in {libraries} if n in sys.modules])") == "[]\n"
