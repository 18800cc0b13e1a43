"""What the tests of detectors share: small ones, and a batch for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

detection = pytest.importorskip("involution.detection", exc_type=ImportError)

from involution.detection import FasterRCNN, MaskRCNN, RetinaNet  # noqa: E402

KINDS = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "retinanet": RetinaNet}


def tiny(kind: str = "fasterrcnn", classes: int = 5, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return getattr(detection, f"{kind}_rednet_tiny_fpn")(classes, min_size=64, **arguments)


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of odd sizes, one of them without an object."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 65, 90, generator=generator), torch.rand(3, 64, 71, generator=generator)]
    boxes = [torch.tensor([[5.0, 6, 40, 50], [50, 10, 80, 60]]), torch.zeros(0, 4)]
    labels = [torch.tensor([1, 4]), torch.zeros(0, dtype=torch.int64)]
    masks = [torch.ones(2, 65, 90, dtype=torch.uint8), torch.zeros(0, 64, 71, dtype=torch.uint8)]
    keys = ("boxes", "labels", "masks")
    return images, [dict(zip(keys, each, strict=True)) for each in zip(boxes, labels, masks, strict=True)]
