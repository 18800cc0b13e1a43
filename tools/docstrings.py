"""Docstrings as the site shows them: an extension of griffe, which reads them for mkdocstrings (`mkdocs.yml`)."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Writes what docstrings have of Sphinx's markup in Markdown's, which the site is made of."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrites the docstring of one object."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = in_markdown(obj.docstring.value)


def in_markdown(docstring: str) -> str:
    """A docstring without Sphinx's roles and double colons, and with the heading that griffe knows for examples."""
    text = re.sub(r":(?:attr|class|func|meth|mod):`~?([^`]+)`", r"`\1`", docstring)
    text = re.sub(r"^( *)::\n\n", "", text, flags=re.M)
    text = re.sub(r"::$", ":", text, flags=re.M)
    return re.sub(r"^Example:$", "Examples:", text, flags=re.M)
