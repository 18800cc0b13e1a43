"""Docstrings as the site shows them: an extension of griffe, which reads them for mkdocstrings (`mkdocs.yml`)."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Writes what docstrings have of Sphinx's markup in Markdown's, which the site is made of."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrites the docstring of one object."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = in_markdown(_complete(obj.name, obj.path, obj.docstring.value))


def _complete(name: str, path: str, docstring: str) -> str:
    """The docstring; of a 1D or 3D form the one that it has at run time, which is made from the 2D form's."""
    if name.endswith(("1d", "3d")) and path.startswith("involution."):
        form = getattr(importlib.import_module(path.rpartition(".")[0]), name, None)
        return inspect.getdoc(form) or docstring
    return docstring


def in_markdown(docstring: str) -> str:
    """A docstring without Sphinx's roles and double colons, and with the heading that griffe knows for examples."""
    text = re.sub(r":(?:attr|class|func|meth|mod):`~?([^`]+)`", r"`\1`", docstring)
    text = re.sub(r"^( *)::\n\n", "", text, flags=re.M)
    text = re.sub(r"::$", ":", text, flags=re.M)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.M)
