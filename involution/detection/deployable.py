"""Whole detectors for torch.export, AOTInductor and ONNX: one image of any size in, boxes out.

torchvision's own forward cannot be exported with open sizes: it works on lists of images, moves between levels by
indices, and its ``batched_nms`` branches on how many boxes there are. Here the same steps are tensors alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import nms

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

    mean: Tensor
    std: Tensor
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
        for name, values in (("mean", model.transform.image_mean), ("std", model.transform.image_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))
        self.train(model.training)

    def resize(self, image: Tensor) -> Tensor:
        """``(channels, H, W)`` in the size that the detector resizes it to, as ``(1, channels, h, w)``."""
        return self.model.transform.resize(image, None)[0][None]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores, labels and perhaps masks; see the class."""
        if images.dim() != 4 or images.shape[0] != 1 or images.shape[1] != len(self.mean):
            raise ValueError(
                f"The image must be (1, {len(self.mean)}, height, width), but its shape is {tuple(images.shape)}."
            )
        height, width = images.shape[2:]
        right, below = self._padding(width), self._padding(height)
        padded = F.pad((images - self.mean) / self.std, (0, right, 0, below))
        levels = self.model.backbone(padded)
        if isinstance(self.model, RetinaNet):
            return self._retina(padded, list(levels.values()), (height, width))
        boxes = self._proposals(padded, list(levels.values()), (height, width))
        boxes, scores, labels = self._boxes(levels, boxes, (height, width))
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
        count = rpn.pre_nms_top_n()
        logits, codes = rpn.head(levels)
        scores = [each.permute(0, 2, 3, 1).flatten() for each in logits]
        flat = [each[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4) for each in codes]
        anchors = _split(rpn.anchor_generator, images, levels, [each.shape[0] for each in scores])
        found = [_best(*level, count) for level in zip(scores, flat, anchors, strict=True)]
        best = torch.cat([level[0] for level in found]).sigmoid()
        boxes = torch.cat([rpn.box_coder.decode_single(codes, anchors) for _, codes, anchors, _ in found])
        boxes = _clip(boxes, size)
        numbers = torch.arange(len(found), device=boxes.device).repeat_interleave(count)
        keep = torch.where(_large(boxes, rpn.min_size) & (best >= rpn.score_thresh))[0]
        boxes = boxes[keep]
        return boxes[_nms(boxes, best[keep], numbers[keep], size, rpn.nms_thresh)[: rpn.post_nms_top_n()]]

    def _boxes(
        self, levels: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the second stage makes of proposals."""
        heads = self.model.roi_heads
        logits, codes = heads.box_predictor(heads.box_head(_pool(heads.box_roi_pool, levels, proposals)))
        scores = logits.float().softmax(1)[:, 1:]
        boxes = heads.box_coder.decode_single(codes, proposals).unflatten(1, (-1, 4))[:, 1:]
        boxes = _clip(boxes.flatten(0, 1), size)
        labels = (torch.arange(scores.shape[1], device=boxes.device) + 1).expand_as(scores).flatten()
        return _detections(
            boxes, scores.flatten(), labels, size, heads, _large(boxes, 1e-2), heads.detections_per_img
        )

    def _masks(self, levels: dict[str, Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """The mask of each detection, ``(N, 1, h, w)``."""
        heads = self.model.roi_heads
        # With two more, since a norm asks whether there is anything, which torch.export cannot know of N.
        features = _pool(heads.mask_roi_pool, levels, F.pad(boxes, (0, 0, 0, 2)))
        logits = heads.mask_predictor(heads.mask_head(features))[:-2].float()
        chosen = labels.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, chosen).sigmoid()

    def _retina(self, images: Tensor, levels: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        model = self.model
        outputs = model.head(levels)
        logits, codes = outputs["cls_logits"][0].float(), outputs["bbox_regression"][0]
        classes, per_position = logits.shape[1], model.anchor_generator.num_anchors_per_location()[0]
        counts = [each.shape[2] * each.shape[3] * per_position for each in levels]
        anchors = _split(model.anchor_generator, images, levels, counts)
        found = [
            _best(scores.flatten(), code, boxes, model.topk_candidates, classes)
            for scores, code, boxes in zip(
                _parts(logits, counts), _parts(codes, counts), anchors, strict=True
            )
        ]
        scores = torch.cat([level[0] for level in found]).sigmoid()
        boxes = torch.cat([model.box_coder.decode_single(level[1], level[2]) for level in found])
        labels = torch.cat([level[3] % classes + 1 for level in found])
        every = torch.ones_like(labels, dtype=torch.bool)
        return _detections(_clip(boxes, size), scores, labels, size, model, every, model.detections_per_img)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks ``(N, 1, 28, 28)`` of boxes ``(N, 4)`` as images ``(N, 1, height, width)`` of probabilities."""
    return paste_masks_in_image(masks, boxes, (height, width))


def _split(generator: Any, images: Tensor, levels: list[Tensor], counts: list[int]) -> Sequence[Tensor]:
    """The anchors of each level."""
    size = (images.shape[2], images.shape[3])
    return _parts(generator(ImageList(images, [size]), levels)[0], counts)


def _parts(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """As ``rows.split(counts)``, which would fix the counts in an exported program."""
    ends = list(itertools.accumulate(counts))
    return [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _best(
    scores: Tensor, codes: Tensor, anchors: Tensor, count: int, classes: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The ``count`` best of ``scores (N * classes,)``, with what belongs to them, and their numbers.

    A small map has fewer. As many boxes of no area and a score of 0 go to the end first, so that there are always
    enough; what selects by area or score later leaves them out.
    """
    scores, numbers = F.pad(scores, (0, count), value=-torch.inf).topk(count)
    rows = numbers // classes
    return scores, F.pad(codes, (0, 0, 0, count))[rows], F.pad(anchors, (0, 0, 0, count))[rows], numbers


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack((x, y), 2).flatten(1)


def _large(boxes: Tensor, least: float) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) >= least).all(1)


def _nms(boxes: Tensor, scores: Tensor, groups: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Non-maximum suppression within each group, which is moved aside by more than an image.

    torchvision tells torch.export that at least two boxes always remain, and a program fails where fewer do. So two are
    added that do, outside of the image and with the lowest scores, and are the last of those that remain.
    """
    aside = groups.to(boxes.dtype) * (torch.sym_max(*size) + 1)
    added = torch.tensor([[-4.0, -4.0, -3.0, -3.0], [-2.0, -2.0, -1.0, -1.0]], device=boxes.device)
    every = torch.cat([boxes + cast(Tensor, aside)[:, None], added])
    kept = nms(every, torch.cat([scores, scores.new_full((2,), -1.0)]), threshold)
    return cast(Tensor, kept)[:-2]


def _pool(pool: RoIAlignPyramid, levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Every box from every level, of which its own one counts: no boxes are sorted by levels."""
    rois = F.pad(boxes, (1, 0))
    own = pool.levels(boxes)
    result: Any = 0
    for number, name in enumerate(pool.featmap_names):
        read = pool.read(number, levels[name], rois)
        result = result + torch.where((own == number)[:, None, None, None], read, 0)
    return result


def _detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], rules: Any, keep: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``most`` best, by a detector's thresholds."""
    keep = torch.where(keep & (scores > rules.score_thresh))[0]
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    keep = _nms(boxes, scores, labels, size, rules.nms_thresh)[:most]
    return boxes[keep], scores[keep], labels[keep]
