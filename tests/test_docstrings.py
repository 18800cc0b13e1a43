"""The examples in the docstrings of layers, networks and conversion give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch
from torch import nn

import involution

MODULES = (
    "conversion",
    "layers.involution",
    "layers.involution_layer",
    "layers.involution_transpose",
    "layers.local_attention",
    "models.pyramid",
    "models.rednet",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"involution.{name}")
    names = {"torch": torch, "nn": nn, **vars(involution), **vars(involution.models)}
    results = doctest.testmod(module, extraglobs=names, raise_on_error=False)
    assert results.attempted and not results.failed
