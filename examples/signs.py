"""Driving: signs at the roadside are found, told by their shape, and their distance is measured.

A car's camera sees signs of four kinds: circle and triangle, white with a red rim, octagon, red, and diamond, yellow.
One or two handwritten digits are on each. They are put over a photograph as a sign 0.7 m high would be seen from 3 to
12 m away: turned by up to 30 degrees in true perspective, under changing light, blurred by the car's motion, with
noise. So boxes and distances are known exactly. A frame has no sign, one, or two; in training up to four, from which
more is learned at once.

A RetinaNet on a tiny RedNet finds them. Distance follows from a box: focal length times the sign's height, divided by
the box's. Training and test have different parts of the photograph, and different digits.

What is printed: mAP50, the mean over kinds of COCO's average precision at an IoU of 0.5, of all signs and by distance;
how far the distances are off; and in how many of the frames with two signs one is found and the other missed.

Run ``python examples/signs.py`` where involution is installed with its extras ``demo`` and ``detection``; it takes
about three minutes on two cores. The exit status is 1 if mAP50 is below 0.7.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from baseline import parameters
from common import draw_losses, fit, need_demo, options
from roadside import FOCAL, HEIGHT, NAMES, SIGN, Frames, Objects, drive
from torch import Tensor, nn

from involution.detection import Anchors, RetinaNet, retinanet_rednet_tiny_fpn

BATCH, LEAST = 8, 0.4  # frames a step; score of what is taken for a sign
BANDS = {"3 to 5 m": (0, 5), "5 to 8 m": (5, 8), "8 to 12 m": (8, 99)}
ALL = (0, 99)
LEVEL = 0.7  # of mAP50, what is promised


def detector() -> RetinaNet:
    """A RetinaNet for small squares: anchors from 12 pixels on, as signs far away have, of that one shape alone."""
    anchors = Anchors([8, 16, 32, 64], [1.5 * 2 ** (step / 3) for step in range(3)], aspect_ratios=[1.0])
    settings = {"anchor_generator": anchors, "min_size": HEIGHT}  # so that frames are taken as they are
    return retinanet_rednet_tiny_fpn(len(NAMES) + 1, neck="convolution", **settings)


def distance(boxes: Tensor) -> Tensor:
    """In metres: a sign turns about its post, so that its width changes, and its height does not."""
    return FOCAL * SIGN / (boxes[:, 3] - boxes[:, 1])


def matched(found: Objects, truth: Objects, least: float = 0.5) -> list[int]:
    """Of each detection, the best scores first, the number of the sign that it has found, or -1: one for each sign."""
    from torchvision.ops import box_iou

    ious = box_iou(found["boxes"], truth["boxes"]) * (found["labels"][:, None] == truth["labels"])
    result = [-1] * len(ious)
    for index in found["scores"].argsort(descending=True).tolist():
        for true in ious[index].argsort(descending=True).tolist():
            if ious[index, true] >= least and true not in result:
                result[index] = true
                break
    return result


def average_precision(found: list[Objects], truth: list[Objects], band: tuple[float, float] = ALL) -> float:
    """COCO's at an IoU of 0.5, the mean over kinds, of signs in a band of distances.

    Signs outside of the band are neither to find nor a mistake, and no more is what looks as far as they are.
    """
    means = []
    for label in range(1, len(NAMES) + 1):
        hits, count = [], 0  # (score, whether it is right)
        for detections, signs in zip(found, truth, strict=True):
            inside = (signs["distances"] >= band[0]) & (signs["distances"] < band[1])
            count += int((inside & (signs["labels"] == label)).sum())
            seems = distance(detections["boxes"])
            for index, true in enumerate(matched(detections, signs)):
                counts = inside[true] if true >= 0 else band[0] <= seems[index] < band[1]
                if counts and detections["labels"][index] == label:
                    hits.append((float(detections["scores"][index]), true >= 0))
        right = torch.tensor([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], dtype=torch.float64)
        precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
        recall = right.cumsum(0) / max(count, 1)
        if count:
            best = [precision[recall >= step / 100 - 1e-9] for step in range(101)]
            means.append(sum(float(part.max()) for part in best if len(part)) / 101)
    return sum(means) / max(len(means), 1)


def draw(frames: Frames, found: list[Objects], losses: dict[str, list[float]], path: Path) -> None:
    """Frames with two signs: the truth white and dashed, what was found red, with its distance; and the loss."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure = plt.figure(figsize=(16, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(4, 1))
    shown = [index for index, target in enumerate(frames.targets) if len(target["labels"]) == 2][:8]
    panels = left.subplots(2, 4).flat
    for panel in panels:
        panel.set_axis_off()
    for panel, index in zip(left.axes, shown, strict=False):
        panel.imshow(frames.images[index].permute(1, 2, 0).numpy())
        style = ({"ec": "white", "ls": "--"}, {"ec": "red"})
        for objects, look in zip((frames.targets[index], found[index]), style, strict=True):
            kept = objects["scores"] >= LEAST if "scores" in objects else objects["labels"] > 0
            for box, label in zip(objects["boxes"][kept], objects["labels"][kept].tolist(), strict=True):
                x, y, end, bottom = box.tolist()
                panel.add_patch(Rectangle((x - 0.5, y - 0.5), end - x, bottom - y, fill=False, **look))
                if "scores" in objects:
                    words = f"{NAMES[label - 1]} {distance(box[None])[0]:.1f} m"
                    panel.text(x, y - 2, words, color="white", backgroundcolor="#d62828a0", fontsize=7)
    draw_losses(right.subplots(), losses)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def report(found: list[Objects], truth: list[Objects]) -> float:
    """Prints the figures; returns mAP50."""
    score = average_precision(found, truth)
    print(f"  mAP50 {score:.3f}, of {sum(len(each['labels']) for each in truth)} signs")
    for name, band in BANDS.items():
        print(f"    {name:18} {average_precision(found, truth, band):.3f}")
    errors, alarms, two, missed = [], 0, 0, 0
    for detections, signs in zip(found, truth, strict=True):
        kept = {name: values[detections["scores"] >= LEAST] for name, values in detections.items()}
        of = torch.tensor(matched(kept, signs), dtype=torch.long)
        right = of >= 0
        alarms += int((~right).sum())
        errors.append((distance(kept["boxes"][right]) / signs["distances"][of[right]] - 1).abs())
        two += len(signs["labels"]) == 2
        missed += len(signs["labels"]) == 2 and int(right.sum()) == 1
    off = torch.cat(errors)
    print(
        f"  distance off by {100 * float(off.mean()) if len(off) else float('nan'):.1f}% in the mean of {len(off)}"
    )
    print(f"  second sign missed in {missed} of {two} frames; {alarms} wrong in {len(truth)} frames")
    return score


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__, "signs", 450, "of the detector")
    parser.add_argument("--test", type=int, default=200, help="number of test frames (default: 200)")
    chosen = parser.parse_args(arguments)
    need_demo()
    import numpy as np

    # The frames are small, so that more threads would wait for each other.
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.manual_seed(chosen.seed)
    model = detector()
    random, began = np.random.default_rng(chosen.seed), time.monotonic()

    def loss_of(model: nn.Module) -> Tensor:
        batch = drive("train", BATCH, random, most=4)
        return torch.stack([*model(batch.images, batch.targets).values()]).sum()

    losses = {"RetinaNet": fit(model, loss_of, chosen.steps, 2e-3, "RetinaNet")}
    print(f"RetinaNet: {parameters(model):,} parameters, {time.monotonic() - began:.0f} s")
    test = drive("test", chosen.test, np.random.default_rng(1))
    with torch.no_grad():
        found = [model([image])[0] for image in test.images]
    score = report(found, test.targets)
    draw(test, found, losses, chosen.output)
    print(f"Picture: {chosen.output}")
    return 0 if score >= LEVEL else 1


if __name__ == "__main__":
    sys.exit(main())
