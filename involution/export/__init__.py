"""Files to deploy a model with."""

from .program import export_program

__all__ = ["export_program"]
