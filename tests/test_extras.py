"""Optional packages that are missing or do not fit: one kind of error, with the command that helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize("broken", ["missing", "unfit"])
def test_torchvision(broken: str, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    metadata = tmp_path / "torchvision-0.28.0.dist-info" / "METADATA"
    metadata.write_text("Name: torchvision\nVersion: 0.28.0\n")
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
        if broken == "unfit"
        else "raise ModuleNotFoundError('', name='torchvision')"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n    import involution.detection\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if broken == "missing":
        assert "involution.detection needs torchvision, which is not installed" in done.stdout
        assert "pip install -e '.[detection]'" in done.stdout
    else:
        assert f"torchvision 0.28.0 does not work with torch {torch.__version__}" in done.stdout
        assert "operator torchvision::nms does not exist" in done.stdout
        assert "pip install --upgrade torch torchvision" in done.stdout
