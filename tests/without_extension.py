"""A pytest plugin: the package as it is where nothing was compiled, also where the extension is built.

The tests import a copy of its Python files alone: the definition in plain PyTorch, differentiated by
involution/autograd.py.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

_copy = tempfile.TemporaryDirectory(prefix="involution-")
_package = Path(__file__).parents[1] / "involution"
shutil.copytree(
    _package, Path(_copy.name) / _package.name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
)
sys.path.insert(0, _copy.name)
# That of an editable installation finds what the copy lacks in the original.
sys.meta_path[:] = [
    finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")
]

import involution  # noqa: E402

assert involution.__file__.startswith(_copy.name), involution.__file__
assert involution.build_info()["extension"] is None, involution.build_info()


def pytest_report_header(config: pytest.Config) -> str:
    return "involution without its extension"
