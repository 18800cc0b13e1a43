"""Runs layers and says which of the library's operators ran."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def operators(function: Any, *arguments: Any) -> list[str]:
    """The library's operators that a call runs."""
    with Calls() as calls:
        function(*arguments)
    return [name.split("::")[1] for name in calls.names if name.startswith("involution::")]
