"""The demo's parts, and the demo as a user runs it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from involution import InvolutionLayer

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("sklearn", "PIL", "matplotlib")


@pytest.fixture
def demo(monkeypatch) -> ModuleType:
    for name in EXTRAS:
        pytest.importorskip(name)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("demo")


@pytest.fixture
def picture(demo) -> ModuleType:
    return importlib.import_module("picture")


def test_the_demo_runs(demo, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--output", "out.png", "--device", "cpu"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert "WRONG" not in result.stdout
    assert result.stdout.count(" exact ") == 5
    assert "InvolutionLayer(3, 64, 7)" in result.stdout
    if not demo.has_kernels(torch.device("cpu")):
        assert result.stdout.count("same code") == 5
        assert "there is no ratio to give" in result.stdout
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_extra_is_named(tmp_path):
    code = "import sys; sys.modules['sklearn'] = None; sys.path.insert(0, sys.argv[1]); import demo"
    command = [sys.executable, "-c", code, str(ROOT / "examples")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode != 0
    assert "pip install -e '.[demo]'" in result.stderr


def test_a_wrong_result_fails(demo, monkeypatch, tmp_path, capsys):
    wrong = demo.Row("involution2d", 1e-3, 1e-7, 1.0, None)
    assert not wrong.exact
    monkeypatch.setattr(demo, "measure", lambda *_: [wrong])
    monkeypatch.setattr(demo, "draw", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--device", "cpu", "--output", str(tmp_path / "x.png")])
    assert demo.main() == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "reference_error", "exact"),
    [
        (1e-7, 1e-7, True),
        (3e-7, 1e-7, True),  # one rounding more than twice
        (1e-6, 1e-7, False),
        (1e-3, 1e-3, False),  # over the ceiling, whatever the reference's
        (float("nan"), 1e-7, False),
    ],
)
def test_tolerance(demo, error, reference_error, exact):
    assert demo.Row("", error, reference_error, 1.0, None).exact == exact


def test_the_table_gives_a_ratio_only_where_two_things_were_timed(demo):
    text = demo.table(
        [demo.Row("a", 1e-7, 1e-7, 2.0, 5.0), demo.Row("b", 1e-7, 1e-7, 2.0, None)]
    ).splitlines()
    assert text[1].endswith("2.5x")
    assert text[2].split()[-3:] == ["same", "code", "-"]
    assert len({len(line) for line in text}) == 1


def test_the_layer_by_reference_is_the_layer(demo):
    layer = InvolutionLayer(3, 8, (3, 5), padding="same", groups=2).double()
    x = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), demo.layer_by_reference(layer, x))


def test_smoothing_kernels_are_a_bilateral_filter(picture):
    torch.manual_seed(0)
    image, size, tolerance = torch.rand(1, 3, 8, 9, dtype=torch.float64), 5, 0.3
    kernels = picture.smoothing_kernels(image, size, tolerance)[0, 0]
    for i, j in ((0, 0), (4, 4), (7, 8), (2, 6)):
        expected = torch.zeros(size, size, dtype=torch.float64)
        for u in range(size):
            for v in range(size):
                row, col = i + u - 2, j + v - 2
                if 0 <= row < 8 and 0 <= col < 9:  # the zeros around the image have no part
                    colour = (image[0, :, i, j] - image[0, :, row, col]).square().sum() / (2 * tolerance**2)
                    distance = ((u - 2) ** 2 + (v - 2) ** 2) / (2 * (size / 4) ** 2)
                    expected[u, v] = torch.exp(-colour - distance)
        torch.testing.assert_close(kernels[:, :, i, j], expected / expected.sum())
