"""Small problems for the fused operator."""

import pytest
import torch
import torch._dynamo.testing
from cases import Case
from fused_cases import FusedCase

import involution  # noqa: F401  defines the operators

OPERATOR = torch.ops.involution.fused_involution.default


SMALL = [
    FusedCase(Case(2, 2, 2, (4, 3), (3, 2), (1, 1), (1, 1), (1, 1)), 2),
    FusedCase(Case(3, 1, 2, (5, 4), (3, 3), (2, 2), (1, 1), (1, 1)), 1, bias=False),
    FusedCase(
        Case(2, 2, 1, (3, 4), (3, 3), (1, 2), (2, 2), (2, 1), x_layout="channels_last"),
        3,
        features_layout="channels_last",
    ),
    FusedCase(Case(1, 1, 1, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)), 2),
    FusedCase(Case(2, 2, 1, (5,), (3,), (1,), (1,), (1,)), 2),
    FusedCase(Case(1, 1, 2, (2, 1, 3), (2, 1, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1)), 2),
]


EACH_SMALL = pytest.mark.parametrize("case", SMALL, ids=range(len(SMALL)))
