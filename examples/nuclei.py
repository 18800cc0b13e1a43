"""Medical: nuclei of cells are found and outlined in a fluorescence micrograph.

Whoever counts cells under a microscope needs each nucleus apart from its neighbours, also where two touch. The
micrograph is real, of the 2018 Data Science Bowl, with 125 nuclei that experts have outlined. It ships in the package
``stardist``, of which only the files are read: ``pip install --no-deps stardist``.

A Semantic FPN on a tiny RedNet says of every pixel whether it is outside, inside, or on the border of a nucleus, which
is one pixel wide and keeps neighbours apart. Each connected piece of inside is a nucleus. The network trains on crops
of the left 320 columns alone, and is tested on the other 192, whose nuclei it has never seen. The same network with 3x3
convolutions in the place of its involutions trains beside it.

What is printed: Dice, 2|A and B| / (|A| + |B|), and IoU, |A and B| / |A or B|, of all pixels of nuclei; and how many
nuclei are found, each by a piece of its own with an IoU of at least 0.5.

Run ``python examples/nuclei.py`` where involution is installed with its extra ``demo``; it takes about two minutes. The
exit status is 1 if Dice is below 0.90, or fewer than 28 of the 41 nuclei are found.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from baseline import parameters, with_convolutions
from common import COLOURS, draw_losses, fit, need_demo, options
from torch import Tensor, nn

from involution.segmentation import semantic_fpn_rednet_tiny

OUTSIDE, INSIDE, BORDER = range(3)
SPLIT = 320  # columns to train on; the rest is for the test
CROP, BATCH = 96, 8
SPECK = 20  # pixels of inside: fewer are no nucleus
DICE, FOUND = 0.90, 28 / 41  # what is promised


class Micrograph(NamedTuple):
    """Brightness ``(H, W)``, of mean 0 and deviation 1, and the number of each pixel's nucleus, 0 outside."""

    image: Tensor
    nuclei: Tensor

    def columns(self, begin: int, end: int | None) -> Micrograph:
        return Micrograph(self.image[:, begin:end], self.nuclei[:, begin:end])


def shipped() -> tuple[Path, Path]:
    """The files of the micrograph and its nuclei. stardist is not imported: that needs packages of its own."""
    found = importlib.util.find_spec("stardist")
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            "The micrograph ships in the package stardist, which is missing. Install it, without what it needs to "
            "run, by: pip install --no-deps stardist",
            name="stardist",
        )
    folder = Path(found.submodule_search_locations[0]) / "data" / "images"
    return folder / "img2d.tif", folder / "mask2d.tif"


def read(picture: Path, mask: Path) -> Micrograph:
    """Two files of one size, of 8 or 16 bits of grey: both are read as whole numbers, whatever white is."""
    import numpy as np
    from PIL import Image

    image, nuclei = (torch.from_numpy(np.array(Image.open(file), dtype=np.int64)) for file in (picture, mask))
    if image.ndim != 2 or image.shape != nuclei.shape:
        raise ValueError(f"Grey pictures of one size are needed, not {[*image.shape]} and {[*nuclei.shape]}.")
    seen = image[:, :SPLIT].float()  # the test's brightness is not known in advance
    return Micrograph((image - seen.mean()) / seen.std(), nuclei)


def classes(nuclei: Tensor) -> Tensor:
    """Outside, inside or border; a nucleus' border are its pixels beside another nucleus, or beside none."""
    padded = nn.functional.pad(nuclei[None, None].double(), (1, 1, 1, 1), mode="replicate")[0, 0].long()
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border = torch.stack([other != nuclei for other in beside]).any(0)
    return torch.where(nuclei == 0, OUTSIDE, torch.where(border, BORDER, INSIDE))


def crops(image: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of squares from random places, turned and mirrored at random: cells have no upright."""
    images, targets = [], []
    for _ in range(BATCH):
        top, left = (int(torch.randint(n - CROP + 1, (), generator=generator)) for n in image.shape)
        turns, mirrored = (int(torch.randint(n, (), generator=generator)) for n in (4, 2))
        for source, batch in ((image, images), (target, targets)):
            square = source[top : top + CROP, left : left + CROP].rot90(turns)
            batch.append(square.flip(1) if mirrored else square)
    return torch.stack(images)[:, None], torch.stack(targets)


def pieces(found: Tensor) -> Tensor:
    """The number of each pixel's nucleus, from its class: connected inside, with the border grown back."""
    from scipy.ndimage import label

    numbers = torch.from_numpy(label((found == INSIDE).numpy())[0]).long()
    numbers[numbers.flatten().bincount()[numbers] < SPECK] = 0
    # Borders join the piece that they touch; where two do, one of them, by its number.
    grown = nn.functional.max_pool2d(numbers[None, None].double(), 3, 1, 1)[0, 0].long()
    return torch.where((numbers == 0) & (found == BORDER), grown, numbers)


def overlap(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """Dice and IoU of two masks."""
    both, total = int((found & truth).sum()), int(found.sum() + truth.sum())
    return 2 * both / max(total, 1), both / max(total - both, 1)


def matched(found: Tensor, truth: Tensor, least: float = 0.5) -> dict[int, int]:
    """The nuclei found, by number: true ones and the piece that each is found by; the best pairs go first."""
    pairs, counts = torch.stack([truth, found])[:, (truth > 0) & (found > 0)].unique(
        dim=1, return_counts=True
    )
    true_sizes, found_sizes = truth.flatten().bincount(), found.flatten().bincount()
    ious = counts / (true_sizes[pairs[0]] + found_sizes[pairs[1]] - counts)
    result: dict[int, int] = {}
    for index in ious.argsort(descending=True).tolist():
        true, piece = pairs[:, index].tolist()
        if ious[index] >= least and true not in result and piece not in result.values():
            result[true] = piece
    return result


def train(model: nn.Module, part: Micrograph, steps: int, title: str, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    target = classes(part.nuclei)

    def loss_of(model: nn.Module) -> Tensor:
        images, wanted = crops(part.image, target, generator)
        return nn.functional.cross_entropy(model(images)["out"], wanted)

    return fit(model, loss_of, steps, 4e-3, title)


def draw(test: Micrograph, found: dict[str, Tensor], losses: dict[str, list[float]], path: Path) -> None:
    """The part that the networks have not seen, the truth, what was found, and how training went."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3 + len(found), figsize=(17, 8), layout="constrained")

    def outline(panel: Any, nuclei: Tensor, colour: str, title: str) -> None:
        panel.imshow(test.image.numpy(), cmap="gray", vmin=-1, vmax=4)
        for number in nuclei.unique().tolist():
            if number:
                panel.contour((nuclei == number).numpy(), [0.5], colors=[colour], linewidths=1)
        panel.set_title(title)
        panel.set_axis_off()

    outline(axes[0], torch.zeros_like(test.nuclei), "black", "micrograph, not trained on")
    outline(axes[1], test.nuclei, "#ffd60a", f"{len(test.nuclei.unique()) - 1} nuclei, by experts")
    for (name, numbers), colour, panel in zip(found.items(), COLOURS, axes[2:], strict=False):
        count = len(matched(numbers, test.nuclei))
        outline(panel, numbers, colour, f"{name}: {count} found of {numbers.unique().numel() - 1} drawn")
    draw_losses(axes[-1], losses)
    axes[-1].set_box_aspect(1)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = options(__doc__, "nuclei", 250)
    parser.add_argument("--picture", type=Path, help="another micrograph, grey (default: stardist's)")
    parser.add_argument("--mask", type=Path, help="the number of each pixel's nucleus in it, 0 outside")
    chosen = parser.parse_args(arguments)
    if (chosen.picture is None) != (chosen.mask is None):
        parser.error("--picture and --mask belong together")
    need_demo()
    whole = read(*((chosen.picture, chosen.mask) if chosen.picture else shipped()))
    seen, test = whole.columns(0, SPLIT), whole.columns(SPLIT, None)
    torch.set_num_threads(1)  # the crops are small
    torch.manual_seed(chosen.seed)
    ours = semantic_fpn_rednet_tiny(3, in_channels=1)
    models = {"involution": ours, "3x3 convolution": with_convolutions(ours)}
    count = len(test.nuclei.unique()) - 1
    print(f"Of {count} nuclei in {test.image.shape[1]} columns that no network has seen:")
    maps, losses, scores = {}, {}, {}
    for name, model in models.items():
        began = time.monotonic()
        losses[name] = train(model, seen, chosen.steps, name, chosen.seed)
        with torch.no_grad():
            found = model(test.image[None, None])["out"][0].argmax(0)
        maps[name] = pieces(found)
        dice, iou = overlap(found != OUTSIDE, test.nuclei > 0)
        scores[name] = dice, len(matched(maps[name], test.nuclei))
        print(
            f"  {name:16} finds {scores[name][1]} with {len(maps[name].unique()) - 1} outlines, Dice {dice:.3f}, IoU "
            f"{iou:.3f}; {parameters(model):,} parameters, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    draw(test, maps, losses, chosen.output)
    print(f"Picture: {chosen.output}")
    dice, hits = scores["involution"]
    return 0 if dice >= DICE and hits >= FOUND * count else 1


if __name__ == "__main__":
    sys.exit(main())
