"""Docstrings: examples give what they say, and arguments are described with their types and defaults."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re

import pytest
import torch
from torch import nn

import involution
from involution._docstrings import like_2d

MODULES = (
    "conversion",
    "layers.involution",
    "layers.involution_layer",
    "layers.involution_transpose",
    "layers.local_attention",
    "models.pyramid",
    "models.rednet",
    "segmentation.models",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"involution.{name}")
    names = {"torch": torch, "nn": nn, **vars(involution), **vars(involution.models)}
    results = doctest.testmod(module, extraglobs=names, raise_on_error=False)
    assert results.attempted and not results.failed


def public(package: str) -> list[str]:
    module = pytest.importorskip(f"involution.{package}", exc_type=ImportError) if package else involution
    return [f"{module.__name__}.{name}" for name in module.__all__ if inspect.getdoc(getattr(module, name))]


@pytest.mark.parametrize("package", ["", "models", "detection", "segmentation", "export", "reference"])
def test_arguments_have_types_and_defaults(package):
    """As torch writes them: ``name (type, optional): What it is. Default: 1``."""
    seen = 0
    for name in public(package):
        module, _, own = name.rpartition(".")
        thing = getattr(importlib.import_module(module), own)
        _, found, text = inspect.getdoc(thing).partition("\nArgs:\n")
        if not found or not callable(thing):
            continue
        text = re.split(r"\n\n|\n(?=\w)", text)[0]
        entries = dict(re.findall(r"^    (\**\w+)((?:.|\n     )*)", text, re.M))
        for argument, parameter in inspect.signature(thing).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or argument == "self":
                continue
            assert argument in entries, f"{name}: {argument} is not described"
            assert re.match(r" \([^)]+\): \S", entries[argument]), f"{name}: {argument} has no type"
            if parameter.default not in (parameter.empty, None):
                said = re.search(r"(?i)default|unless given", entries[argument])
                assert said, f"{name}: {argument} = {parameter.default!r} is not said"
            seen += 1
    assert seen


@pytest.mark.parametrize("name", [name for name in involution.__all__ if name.endswith(("1d", "3d"))])
def test_forms_of_one_and_three_axes_have_the_text_of_the_2d_form(name):
    """Line for line, with the axes of their own and nothing of the 2D form's."""
    text = getattr(involution, name).__doc__
    model = getattr(involution, f"{name[:-2]}2d").__doc__
    assert text.count("Default:") == model.count("Default:") > 0
    assert "(B, C, L)" in text or "(B, C, D, H, W)" in text or "channels, L)" in text or "D, H, W)" in text
    for other in ("2d", "2D", " KH, KW", ", KH*KW", "(B, C, H, W)", "channels, H, W)", ", Hout, Wout"):
        assert other not in text.replace("Dout, Hout, Wout", "").replace("KD, KH, KW", "")


def test_axes_are_replaced_and_the_example_is_the_form_s_own():
    def double2d():
        """Doubles a 2D map ``(B, H, W)`` to ``(B, KH, KW, Hout, Wout)``.

        Example:
            >>> double2d()
        """

    @like_2d(double2d)
    def double1d():
        """Short.

        Example:
            >>> double1d()
        """

    @like_2d(double2d)
    def double3d():
        """Short."""

    assert double1d.__doc__ == (
        "Doubles a 1D map ``(B, L)`` to ``(B, K, Lout)``.\n\nExample:\n    >>> double1d()\n"
    )
    assert double3d.__doc__ == "Doubles a 3D map ``(B, D, H, W)`` to ``(B, KD, KH, KW, Dout, Hout, Wout)``.\n"
