"""Whole detectors for torch.export, AOTInductor and ONNX: one image of any size in, boxes out.

torchvision's own forward cannot be exported with open sizes: it works on lists of images, moves between levels by
indices, and its ``batched_nms`` branches on how many boxes there are. Here the same steps are tensors alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import clip_boxes_to_image, nms

from .heads import RoIAlignPyramid
from .models import FasterRCNN, RetinaNet

__all__ = ["DeployableDetector", "paste_masks"]


class DeployableDetector(nn.Module):
    """A detector in inference, of one image, with everything but resizing inside.

    The boxes are those of ``model.eval()`` where that does not resize the image; :meth:`resize` makes an image of the
    size that it would. Non-maximum suppression of the classes is by one call, with each class moved aside.

    Args:
        model (FasterRCNN or RetinaNet): A :class:`FasterRCNN`, :class:`MaskRCNN` or :class:`RetinaNet` of this package,
            with any predictors.

    Attributes:
        export_axes: for :func:`involution.export.export_model`, the axes of the image that stay open.
        export_outputs: names of what comes out.

    Shape:
        ``(1, channels, H, W)``, float32, from 0 to 1, to ``boxes (N, 4)`` in pixels, float32, ``scores (N,)``, float32,
        falling, ``labels (N,)``, int64, and of a Mask R-CNN ``masks (N, 1, 28, 28)``, probabilities of the points of
        each box, float32, which :func:`paste_masks` puts into images. ``N`` is 0 where nothing is found.

    Raises:
        TypeError: the model is another one, or reads its regions by something else than :class:`RoIAlignPyramid`.
    """

    export_axes: ClassVar = {2: "height", 3: "width"}

    def __init__(self, model: FasterRCNN | RetinaNet) -> None:
        super().__init__()
        if not isinstance(model, FasterRCNN | RetinaNet):
            raise TypeError(
                "model must be a FasterRCNN, MaskRCNN or RetinaNet of involution.detection, not "
                f"{type(model).__name__}."
            )
        if isinstance(model, FasterRCNN):
            for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
                if pool is not None and not isinstance(pool, RoIAlignPyramid):
                    raise TypeError(
                        f"The model must read regions by RoIAlignPyramid, not {type(pool).__name__}."
                    )
        self.model: Any = model
        self.has_masks = isinstance(model, FasterRCNN) and model.roi_heads.has_mask()
        self.export_outputs = ("boxes", "scores", "labels", *(["masks"] if self.has_masks else []))
        self.train(model.training)

    def resize(self, image: Tensor) -> Tensor:
        """``(channels, H, W)`` in the size that the detector resizes it to, as ``(1, channels, h, w)``."""
        return self.model.transform.resize(image, None)[0][None]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores, labels and perhaps masks; see the class."""
        channels = len(self.model.transform.image_mean)
        if images.dim() != 4 or images.shape[:2] != (1, channels):
            raise ValueError(
                f"The image must be (1, {channels}, height, width), but its shape is {tuple(images.shape)}."
            )
        size = height, width = images.shape[2], images.shape[3]
        right, below = self._padding(width), self._padding(height)
        padded = F.pad(self.model.transform.normalize(images[0])[None], (0, right, 0, below))
        levels = self.model.backbone(padded)
        if isinstance(self.model, RetinaNet):
            return self._retina(padded, list(levels.values()), size)
        boxes = self._proposals(padded, list(levels.values()), size)
        boxes, scores, labels = self._boxes(levels, boxes, size)
        if not self.has_masks:
            return boxes, scores, labels
        return boxes, scores, labels, self._masks(levels, boxes, labels)

    def _padding(self, size: int) -> Any:
        """As torchvision, to the next multiple, but to two positions of the coarsest map at least.

        To torch.export a size of 1 is a constant.
        """
        step = self.model.transform.size_divisible
        return torch.sym_max(size + -size % step, 2 * self.model.backbone.strides[-1]) - size

    def _proposals(self, images: Tensor, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        """What the region proposal network finds, ``(N, 4)``."""
        rpn = self.model.rpn
        logits, codes = rpn.head(levels)
        flat = [each.permute(0, 2, 3, 1).flatten() for each in logits]
        rows = [each[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4) for each in codes]
        outputs = list(zip(flat, rows, strict=True))
        boxes, scores, _, numbers = _candidates(rpn, images, levels, outputs, rpn.pre_nms_top_n(), size)
        keep = _large(boxes, rpn.min_size) & (scores >= rpn.score_thresh)
        return _suppress(boxes, scores, numbers, keep, size, rpn.nms_thresh, rpn.post_nms_top_n())[0]

    def _boxes(
        self, levels: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the second stage makes of proposals."""
        heads = self.model.roi_heads
        logits, codes = heads.box_predictor(heads.box_head(_pool(heads.box_roi_pool, levels, proposals)))
        scores = logits.float().softmax(1)[:, 1:]
        boxes = heads.box_coder.decode_single(codes, proposals).unflatten(1, (-1, 4))[:, 1:]
        boxes = clip_boxes_to_image(boxes.flatten(0, 1), size)
        labels = (torch.arange(scores.shape[1], device=boxes.device) + 1).expand_as(scores).flatten()
        scores = scores.flatten()
        keep = _large(boxes, 1e-2) & (scores > heads.score_thresh)
        return _suppress(boxes, scores, labels, keep, size, heads.nms_thresh, heads.detections_per_img)

    def _masks(self, levels: dict[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """The mask of each detection, ``(N, 1, h, w)``."""
        heads = self.model.roi_heads
        # With two more, since a norm asks whether there is anything, which torch.export cannot know of N.
        features = _pool(heads.mask_roi_pool, levels, F.pad(boxes, (0, 0, 0, 2)))
        logits = heads.mask_predictor(heads.mask_head(features))[:-2].float()
        chosen = labels.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, chosen).sigmoid()

    def _retina(self, images: Tensor, levels: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """What a RetinaNet finds."""
        model = self.model
        found = [model.head([level]) for level in levels]
        outputs = [(each["cls_logits"].float().flatten(), each["bbox_regression"][0]) for each in found]
        classes = found[0]["cls_logits"].shape[2]
        boxes, scores, numbers, _ = _candidates(
            model, images, levels, outputs, model.topk_candidates, size, classes
        )
        keep = scores > model.score_thresh
        return _suppress(boxes, scores, numbers + 1, keep, size, model.nms_thresh, model.detections_per_img)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks ``(N, 1, 28, 28)`` of boxes ``(N, 4)`` as images ``(N, 1, height, width)`` of probabilities."""
    return paste_masks_in_image(masks, boxes, (height, width))


def _candidates(
    part: Any,
    images: Tensor,
    levels: list[Tensor],
    outputs: list[tuple[Tensor, Tensor]],
    count: int,
    size: tuple[int, int],
    classes: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ``count`` best boxes of each level, with their scores, classes and levels, all counted from 0.

    ``outputs`` are each level's logits ``(N * classes,)`` and codes ``(N, 4)``; ``part`` has anchors and a box coder. A
    small map has fewer than ``count``. As many boxes of no area and a score of 0 go to the end first, so that there are
    always enough; what selects by area or score later leaves them out.
    """
    padded_size = (images.shape[2], images.shape[3])
    anchors = part.anchor_generator(ImageList(images, [padded_size]), levels)[0]
    found, end = [], 0
    for level, (logits, codes) in enumerate(outputs):
        start, end = end, end + codes.shape[0]  # split() would fix the counts in an exported program
        best, places = F.pad(logits, (0, count), value=-torch.inf).topk(count)
        rows = places // classes
        boxes = part.box_coder.decode_single(
            F.pad(codes, (0, 0, 0, count))[rows], F.pad(anchors[start:end], (0, 0, 0, count))[rows]
        )
        found.append((boxes, best.sigmoid(), places % classes, torch.full_like(places, level)))
    boxes, scores, labels, numbers = (torch.cat(each) for each in zip(*found, strict=True))
    return clip_boxes_to_image(boxes, size), scores, labels, numbers


def _large(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)


def _suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    keep: Tensor,
    size: tuple[int, int],
    threshold: float,
    most: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of boxes, scores and groups those to keep, by non-maximum suppression within each group: the ``most`` best.

    A group is moved aside by more than an image. torchvision tells torch.export that at least two boxes always remain,
    and a program fails where fewer do. So two are added that do, outside of the image and with the lowest scores, and
    are the last of those that remain.
    """
    places = torch.where(keep)[0]
    boxes, scores, groups = boxes[places], scores[places], groups[places]
    aside: Any = groups.to(boxes.dtype) * (torch.sym_max(*size) + 1)
    added = torch.tensor([[-4.0, -4.0, -3.0, -3.0], [-2.0, -2.0, -1.0, -1.0]], device=boxes.device)
    every = torch.cat([boxes + aside[:, None], added])
    kept: Any = nms(every, torch.cat([scores, scores.new_full((2,), -1.0)]), threshold)
    kept = kept[:-2][:most]
    return boxes[kept], scores[kept], groups[kept]


def _pool(pool: RoIAlignPyramid, levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Every box from every level, of which its own one counts: no boxes are sorted by levels."""
    rois = F.pad(boxes, (1, 0))
    own = pool.levels(boxes)
    result: Any = 0
    for number, name in enumerate(pool.featmap_names):
        read = pool.read(number, levels[name], rois)
        result = result + torch.where((own == number)[:, None, None, None], read, 0)
    return result
