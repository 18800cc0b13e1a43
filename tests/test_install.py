"""What is installed: a missing, foreign or broken extension, and a wheel without it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def info(monkeypatch):
    """involution._build_info with a pretended `_C`: set `torch` and `ops`."""
    module = importlib.import_module("involution._build_info")
    pretended = SimpleNamespace(torch=str(torch.__version__), ops=None, module=module)
    monkeypatch.setattr(module, "_compiled_info", lambda: pretended.torch and {"torch": pretended.torch})
    monkeypatch.setattr(module, "_path_of", lambda name: pretended.ops)
    return pretended


def test_without_an_extension_nothing_is_loaded_and_the_reason_is_given(info):
    info.torch = None
    assert info.module.load_extension() is False
    assert "INVOLUTION_BUILD=none" in info.module.build_info()["no_cuda_reason"]


def test_another_torch_is_refused_with_the_command_that_rebuilds(info):
    info.torch = "2.3.0+cu118"
    with pytest.raises(ImportError) as error:
        info.module.load_extension()
    message = str(error.value)
    assert f"was built against torch 2.3.0+cu118, but this is torch {torch.__version__}" in message
    assert message.endswith(info.module.rebuild_command())


def test_a_missing_or_broken_library_is_refused_with_the_command_that_rebuilds(info, tmp_path):
    with pytest.raises(ImportError, match=r"lacks its library of operators.*pip install"):
        info.module.load_extension()
    info.ops = str(tmp_path / "_ops.so")
    Path(info.ops).write_text("no library")
    with pytest.raises(ImportError, match=r"cannot be loaded: .*pip install"):
        info.module.load_extension()


def test_rebuild_command(info, tmp_path, monkeypatch):
    module = info.module
    noted: dict[str, str] = {}
    distribution = SimpleNamespace(read_text=noted.get)
    monkeypatch.setattr(module.importlib.metadata, "distribution", lambda name: distribution)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "84.0")
    tree = tmp_path / "a b"
    (tree / "involution").mkdir(parents=True)
    (tree / "setup.py").touch()
    monkeypatch.setattr(module, "__file__", str(tree / "involution" / "_build_info.py"))

    pip = "python -m pip install --no-deps --force-reinstall"
    assert module.rebuild_command() == f"{pip} --no-build-isolation -e '{tree}'"
    noted["INSTALLER"] = "uv\n"
    assert (
        module.rebuild_command() == f"uv pip install --no-deps --reinstall --no-build-isolation -e '{tree}'"
    )

    (tree / "setup.py").unlink()  # away from a source tree
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "65.5.0")
    noted["INSTALLER"] = "pip\n"
    assert module.rebuild_command() == f"{pip} PATH_OF_THE_SOURCE_TREE"
    noted["direct_url.json"] = json.dumps({"url": "file:///src", "dir_info": {}})
    assert module.rebuild_command() == f"{pip} file:///src"
    noted["direct_url.json"] = json.dumps(
        {"url": "ssh://x/y", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
    )
    assert module.rebuild_command() == f"{pip} git+ssh://x/y@abc"


def run(*command: object, **environ: str) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environ},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_wheel_without_the_extension_works_away_from_the_source_tree(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    source = tmp_path / "source"  # a copy, so that this leaves nothing in the tree and takes nothing stale
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("tools", "csrc", "involution"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    run(*pip, "wheel", *offline, "--no-build-isolation", "-w", tmp_path, source, INVOLUTION_BUILD="none")
    (wheel,) = tmp_path.glob("involution-*-py3-none-any.whl")
    run(*pip, "install", *offline, "--target", tmp_path / "site", wheel)
    for file in ("py.typed", "training/configs/imagenet.yaml"):
        assert (tmp_path / "site" / "involution" / file).is_file()
    assert not (tmp_path / "site" / "tests").exists()
    script = (
        "import sys;"
        # An editable install's finder would answer for the submodules that the wheel lacks.
        "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')];"
        "import torch, involution; assert involution.__file__.startswith(sys.argv[1]), involution.__file__;"
        "assert involution.build_info()['extension'] is None;"
        "print(involution.involution2d(torch.ones(1, 2, 4, 4), torch.ones(1, 1, 3, 3, 2, 2)).sum().item())"
    )
    output = run(sys.executable, "-c", script, tmp_path / "site", PYTHONPATH=str(tmp_path / "site"))
    assert output.strip() == "72.0"
