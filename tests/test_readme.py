"""The README's code runs and prints what it says, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks(block, capsys):
    if "involution.train" in block:
        try:
            import involution.training.libraries  # noqa: F401
        except ImportError as error:
            pytest.skip(str(error))
    exec(compile(block, "README.md", "exec"), {})
    promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
    assert capsys.readouterr().out.splitlines() == promised


def test_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"^    make ([a-z]+)|`make ([a-z]+)`", README, re.M))
    targets = {name for pair in named for name in pair if name}
    assert {"demo", "test", "profile", "sanitize", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), (
            f"the README names make {target}, the Makefile does not"
        )


def test_linked_files_exist():
    for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", README):
        assert (ROOT / link).is_file(), f"the README links to {link}"


def test_install_variables_are_read():
    files = [ROOT / "setup.py", *(ROOT / "tools").glob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    sources = "".join(path.read_text("utf-8") for path in files)
    table = README.split("## Install options")[1].split("## ")[0]
    for variable in set(re.findall(r"^\| `([A-Z_]+)", table, re.M)) - {"MAX_JOBS"}:  # torch reads that one
        assert variable in sources, f"the README's {variable} is read nowhere"
