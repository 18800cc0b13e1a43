"""The docstrings of the 1D and 3D forms, made from those of the 2D ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TypeVar

Documented = TypeVar("Documented", bound=Callable)

# What a 2D text says of its axes, and what one of one or three axes says there.
_AXES = {
    r"\bKH\*KW\b": ("K", "KD*KH*KW"),
    r"\bKH, KW\b": ("K", "KD, KH, KW"),
    r"\bHout, Wout\b": ("Lout", "Dout, Hout, Wout"),
    r"\bceil\(H / stride\), ceil\(W / stride\)": (
        "ceil(L / stride)",
        "ceil(D / stride), ceil(H / stride), ceil(W / stride)",
    ),
    r"\bH, W\b": ("L", "D, H, W"),
    r"2(?=[dD]\b)": ("1", "3"),
}


def like_2d(original: Callable) -> Callable[[Documented], Documented]:
    """Gives a function or class, whose name ends with ``1d`` or ``3d``, the docstring of its 2D form.

    Its own docstring is for those who read the source; only an example in it is kept.
    """

    def document(form: Documented) -> Documented:
        text, _, _ = inspect.cleandoc(original.__doc__ or "").partition("\nExample:\n")
        _, heading, example = inspect.cleandoc(form.__doc__ or "").partition("\nExample:\n")
        three = form.__name__.endswith("3d")
        for pattern, replacements in _AXES.items():
            text = re.sub(pattern, replacements[three], text)
        form.__doc__ = f"{text.rstrip()}\n{heading}{example}".rstrip() + "\n"
        return form

    return document
