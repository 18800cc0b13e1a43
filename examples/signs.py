"""Driving: signs at the roadside are found, read for their shape, and how far away they are.

A car's camera sees signs of four shapes: circle, triangle, octagon, diamond. They are drawn, in any colours, with one
or two handwritten digits on them, and put over a photograph as a sign 0.7 m high would be seen from 3 to 14 m away:
turned by up to 30 degrees in true perspective, under changing light, blurred by the car's motion, with noise. So boxes
and distances are known exactly. A frame has no sign, one, or two.

A RetinaNet on a tiny RedNet finds them. Distance follows from a box: focal length times the sign's height, divided by
the box's. Training and test have different parts of the photograph, and different digits.

What is printed: mAP50, the mean over shapes of COCO's average precision at an IoU of 0.5, of all signs and by distance;
how far the distances are off; and in how many of the frames with two signs the second one is missed, which a driver
would rather not know from a crossing.

Run ``python examples/signs.py`` where involution is installed with its extras ``demo`` and ``detection``; it takes
about three minutes. The exit status is 1 if mAP50 is below 0.75.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import digits, draw_losses, fit, need_demo, options, photographs
from rival import parameters
from torch import Tensor, nn

from involution.detection import Anchors, RetinaNet, retinanet_rednet_tiny_fpn

RED, YELLOW, WHITE = (190, 20, 30), (245, 195, 0), (240, 240, 240)
SHAPES = {
    "circle": (RED, WHITE),
    "triangle": (RED, WHITE),
    "octagon": (WHITE, RED),
    "diamond": (WHITE, YELLOW),
}
NAMES = tuple(SHAPES)  # with the colours of rim and face
HEIGHT, WIDTH, FOCAL = 128, 160, 240.0  # pixels
SIGN, NEAREST, FARTHEST = 0.7, 3.0, 12.0  # metres: its height, and how far away it is
TEXTURE, FINER = (
    128,
    4,
)  # pixels of a sign before it is warped; parts of a pixel that it is warped to along each axis
BATCH, LEAST = 8, 0.4  # frames a step; score of what is taken for a sign
BANDS = {"3 to 5 m": (0, 5), "5 to 8 m": (5, 8), "8 to 12 m": (8, 99)}
ALL = (0, 99)
LEVEL = 0.75  # of mAP50, what is promised

Objects = dict[str, Tensor]


class Frames(NamedTuple):
    """Images ``(3, HEIGHT, WIDTH)`` from 0 to 1, and of each the ``boxes``, ``labels`` from 1, and ``distances``."""

    images: list[Tensor]
    targets: list[Objects]


@functools.cache
def material(part: str) -> tuple[Any, Any]:
    return photographs(part, "china.jpg")[0], digits(part)


def corners(shape: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """The outline in a square of TEXTURE pixels, which it fills to every edge where the scale is 1."""
    import numpy as np

    count, start = {"circle": (64, 0), "triangle": (3, -90), "octagon": (8, 22.5), "diamond": (4, 0)}[shape]
    angles = np.radians(start + np.arange(count) * 360 / count)
    points = np.stack((np.cos(angles), np.sin(angles)), 1)
    points = (points - (points.max(0) + points.min(0)) / 2) * scale / np.ptp(points, 0)
    return [(x, y) for x, y in ((points + 0.5) * TEXTURE).tolist()]


def sign(shape: str, random: Any, images: Any) -> Any:
    """A sign from the front, RGBA: a rim, a face of another colour, and one or two digits that stand out on it."""
    import numpy as np
    from PIL import Image, ImageDraw

    # Paint fades, and differs from sign to sign.
    rim, face = np.uint8(np.clip(np.array(SHAPES[shape]) + random.normal(0, 15, (2, 3)), 0, 255))
    ink = (0, 0, 0) if face.mean() > 110 else (255, 255, 255)
    picture = Image.new("RGBA", (TEXTURE, TEXTURE))
    pen = ImageDraw.Draw(picture)
    pen.polygon(corners(shape), fill=(*rim.tolist(), 255))
    pen.polygon(corners(shape, 0.78), fill=(*face.tolist(), 255))
    count = int(random.integers(1, 3))
    size = TEXTURE * 3 // 8 if count == 1 else TEXTURE // 4
    for number in range(count):
        digit = Image.fromarray(images[random.integers(len(images))]).resize((size, size))
        place = (
            (TEXTURE - count * size) // 2 + number * size,
            (TEXTURE - size) // 2 + (shape == "triangle") * 10,
        )
        picture.paste(Image.new("RGBA", digit.size, (*ink, 255)), place, digit)
    return np.asarray(picture)


def projection(turn: float, centre: Any) -> Any:
    """The 3x3 matrix from a sign's pixels to the frame's; turned by radians about its post, at ``(x, y, z)`` in m."""
    import numpy as np

    pixel = SIGN / TEXTURE
    metres = np.array([[pixel, 0, -SIGN / 2], [0, pixel, -SIGN / 2], [0, 0, 1]])
    pose = np.array([[np.cos(turn), 0, centre[0]], [0, 1, centre[1]], [np.sin(turn), 0, centre[2]]])
    camera = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    return camera @ pose @ metres


def warped(picture: Any, matrix: Any) -> Any:
    """A sign as the camera sees it, ``(HEIGHT, WIDTH, 4)`` from 0 to 1: finer than the frame, and averaged."""
    import numpy as np
    from PIL import Image

    back = np.linalg.inv(np.diag([FINER, FINER, 1]) @ matrix)
    size = WIDTH * FINER, HEIGHT * FINER
    how = Image.Transform.PERSPECTIVE, (back / back[2, 2]).flatten()[:8].tolist(), Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).transform(size, *how).reduce(FINER)) / 255


def tight_box(mask: Any) -> list[int]:
    """x and y of the first pixel and behind the last."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return [int(edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def frame(part: str, random: Any, most: int) -> tuple[Tensor, Objects]:
    import numpy as np

    photograph, images = material(part)
    top, left = (
        random.integers(a - b + 1) for a, b in zip(photograph.shape[:2], (HEIGHT, WIDTH), strict=True)
    )
    scene = photograph[top : top + HEIGHT, left : left + WIDTH]
    scene = np.array(scene[:, ::-1] if random.random() < 0.5 else scene, np.float64)
    boxes, labels, distances, taken = [], [], [], np.zeros((HEIGHT, WIDTH), bool)
    wanted = random.integers(most + 1)
    while len(boxes) < wanted:
        label, distance = int(random.integers(len(SHAPES))), float(random.uniform(NEAREST, FARTHEST))
        side = FOCAL * SIGN / distance
        middle = [random.uniform(side / 2 + 2, edge - side / 2 - 2) for edge in (WIDTH, HEIGHT)]
        place = [(at - edge / 2) * distance / FOCAL for at, edge in zip(middle, (WIDTH, HEIGHT), strict=True)]
        turn = np.radians(random.uniform(-30, 30))
        seen = warped(sign(NAMES[label], random, images), projection(turn, (*place, distance)))
        mask = seen[..., 3] > 0.5
        left, top, right, bottom = box = tight_box(mask)
        if taken[top:bottom, left:right].any():  # signs do not cover each other
            continue
        taken[top:bottom, left:right] = True
        scene += seen[..., 3:] * (seen[..., :3] - scene)
        boxes.append(box), labels.append(label + 1), distances.append(distance)
    length = int(random.integers(3))  # pixels of motion either way, while the shutter is open
    wide = np.pad(scene, ((0, 0), (length, length), (0, 0)), mode="edge")
    scene = np.mean([wide[:, at : at + WIDTH] for at in range(2 * length + 1)], 0)
    scene = scene * random.uniform(0.5, 1.1) + random.normal(0, 0.02, scene.shape)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels).long(),
    }
    image = torch.from_numpy(scene.clip(0, 1)).float().permute(2, 0, 1).contiguous()
    return image, {**target, "distances": torch.tensor(distances)}


def drive(part: str, count: int, random: Any, most: int = 2) -> Frames:
    images, targets = zip(*(frame(part, random, most) for _ in range(count)), strict=True)
    return Frames(list(images), list(targets))


def detector() -> RetinaNet:
    """A RetinaNet for small squares: anchors from 12 pixels on, as signs far away have, of that one shape alone."""
    anchors = Anchors([8, 16, 32, 64], [1.5 * 2 ** (step / 3) for step in range(3)], aspect_ratios=[1.0])
    model = retinanet_rednet_tiny_fpn(len(SHAPES) + 1, neck="convolution", anchor_generator=anchors)
    for tower in (model.head.classification_head.conv, model.head.regression_head.conv):
        for layer in tower.modules():
            # The published start, of deviation 0.01, is for 256 channels and a long warm-up; 64 would pass nothing on.
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


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
    """COCO's at an IoU of 0.5, the mean over shapes, of signs in a band of distances.

    Signs outside of the band are neither to find nor a mistake, and no more is what looks as far as they are.
    """
    means = []
    for label in range(1, len(SHAPES) + 1):
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

    figure = plt.figure(figsize=(16, 6), layout="constrained")
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
    parser = options(__doc__, "signs", 280, "of the detector")
    parser.add_argument("--test", type=int, default=200, help="number of test frames (default: 200)")
    chosen = parser.parse_args(arguments)
    need_demo()
    import numpy as np

    torch.set_num_threads(1)  # the frames are small
    torch.manual_seed(chosen.seed)
    model = detector()
    random, began = np.random.default_rng(chosen.seed), time.monotonic()

    def loss_of(model: nn.Module) -> Tensor:
        batch = drive("train", BATCH, random, most=4)
        return torch.stack([*model(batch.images, batch.targets).values()]).sum()

    losses = {"involution": fit(model, loss_of, chosen.steps, 2e-3, "RetinaNet")}
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
