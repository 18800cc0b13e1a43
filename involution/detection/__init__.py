"""Faster R-CNN, Mask R-CNN and RetinaNet with RedNet, on torchvision's detectors (``pip install -e '.[detection]'``).

They take and give what torchvision's do: images ``(3, H, W)`` from 0 to 1, boxes ``(x1, y1, x2, y2)`` in pixels, labels
from 1 with 0 for the background. Functions build them by name: ``fasterrcnn_``, ``maskrcnn_`` or ``retinanet_``,
``rednet26``, ``38``, ``50``, ``101``, ``152`` or ``rednet_tiny``, and ``_fpn``.
"""

from typing import Any

from .._extras import needed_by

with needed_by("involution.detection", "detection"):
    import torchvision  # noqa: F401  here, so that everything below may import it

from .backbone import RedNetFPN, rednet_fpn_backbone
from .deployable import DeployableDetector, paste_masks
from .heads import Anchors, InvolutionMaskHeads, InvolutionRPNHead, RoIAlignPyramid
from .models import BUILDERS, FasterRCNN, MaskRCNN, RetinaNet
from .targets import check_images, check_targets

__all__ = [
    "Anchors",
    "DeployableDetector",
    "FasterRCNN",
    "InvolutionMaskHeads",
    "InvolutionRPNHead",
    "MaskRCNN",
    "RedNetFPN",
    "RetinaNet",
    "RoIAlignPyramid",
    "check_images",
    "check_targets",
    "paste_masks",
    "rednet_fpn_backbone",
    *BUILDERS,
]


def __getattr__(name: str) -> Any:
    if name not in BUILDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return BUILDERS[name]
