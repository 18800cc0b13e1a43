"""The handwritten digits that ship inside scikit-learn: 1797 grey images of 8x8, no download."""

from __future__ import annotations

import torch

from .images import TensorImages

TEST_SHARE = 0.2
SPLIT_SEED = 0  # not the run's seed: every run is tested on the same images


def load_digits() -> tuple[TensorImages, TensorImages, list[str]]:
    """Training images, test images and the names of the classes.

    The split is the same for every run, and each digit has the same share in both parts (1437 and 360 images).

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise ImportError(
            "The digits come with scikit-learn, which is not installed. Install it with: pip install -e '.[train]'"
        ) from error
    digits = datasets.load_digits()
    train, test = model_selection.train_test_split(
        range(len(digits.target)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=digits.target
    )
    images = torch.from_numpy(digits.images / 16).float()[:, None]  # grey values are 0 to 16
    labels = torch.from_numpy(digits.target)
    parts = [TensorImages(images[part], labels[part].tolist()) for part in (train, test)]
    return parts[0], parts[1], [str(name) for name in digits.target_names]
