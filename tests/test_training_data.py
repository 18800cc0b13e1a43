"""Images for training: the sources, what happens to them, and in which order they come."""

from __future__ import annotations

import io
import pickle
import random
import struct
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from training_cases import Malicious, options, write_images

from involution.training import Config, ConfigError, DataError, from_mapping
from involution.training.cifar import PIXELS, load_cifar
from involution.training.data import TestOrder, TrainingOrder, load_data, make_loader
from involution.training.folder import load_folder
from involution.training.images import BadImageError, TensorImages
from involution.training.transforms import (
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    ResizeAndCenterCrop,
)

# Of the extra `train`
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
sklearn_digits = pytest.importorskip("sklearn.datasets").load_digits

# --- Digits -----------------------------------------------------------------------------------------------


def test_digits_are_split_without_overlap_and_evenly():
    data = load_data(Config())
    assert (len(data.train), len(data.test), data.channels, data.size) == (1437, 360, 1, (8, 8))
    seen = Counter(bytes(image.numpy()) for part in (data.train, data.test) for image in part.images)
    all_images = Counter((image / 16).astype(np.float32).tobytes() for image in sklearn_digits().images)
    assert seen == all_images
    shares = [np.bincount(part.labels) / len(part) for part in (data.train, data.test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.003


def test_digits_are_normalised_and_never_flipped():
    data = load_data(Config(crop_padding=0))
    images = torch.stack([data.train_transform(data.train.read(i), random.Random(0)) for i in range(1437)])
    assert abs(images.mean()) < 1e-5
    assert abs(images.std(correction=0) - 1) < 1e-5
    # Without the shift nothing random is left: every time the same image.
    torch.testing.assert_close(
        images[7], data.train_transform(data.train.read(7), random.Random(1)), rtol=0, atol=0
    )


# --- CIFAR ------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how CIFAR's pickles were made."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


def python2_pickle(content) -> bytes:
    """A pickle of protocol 2, whose arrays refer to NumPy by the names of its first version."""
    stream = io.BytesIO()
    Python2Pickler(stream, 2).dump(content)
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_images(count: int, classes: int) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(count)
    return generator.integers(0, 256, (count, PIXELS), dtype=np.uint8), generator.integers(
        0, classes, count
    ).tolist()


def write_cifar(
    folder: Path, name: str, version: str, order: str = "C"
) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Small files in the layout of the published ones; returns what is in them."""
    folder.mkdir()
    classes = 10 if name == "cifar10" else 100
    batches = (
        [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    )
    content = {}
    for number, batch in enumerate(batches):
        pixels, labels = content[batch] = cifar_images(3 + number, classes)
        if version == "binary":
            first = [bytes([label]) if classes == 10 else bytes([99 - label, label]) for label in labels]
            records = b"".join(label + row.tobytes() for label, row in zip(first, pixels, strict=True))
            (folder / f"{batch}.bin").write_bytes(records)
        else:
            key = b"labels" if classes == 10 else b"fine_labels"
            # As NumPy 1 under Python 2 wrote it; the file names are there, too.
            batch_content = {
                b"data": np.asarray(pixels, order=order),
                key: labels,
                b"filenames": [b"a.png"] * len(labels),
            }
            (folder / batch).write_bytes(python2_pickle(batch_content))
    names = [b"class%d" % i for i in range(classes)]
    if version == "binary":
        text = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
        (folder / text).write_bytes(b"\n".join(names) + b"\n\n")
    else:
        meta, key = ("batches.meta", b"label_names") if classes == 10 else ("meta", b"fine_label_names")
        (folder / meta).write_bytes(python2_pickle({key: names, b"num_vis": 3072}))
    return content


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("version", ["binary", "python", "python by columns"])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar(tmp_path, name, version, inside):
    archive = {"cifar10": "cifar-10-batches-", "cifar100": "cifar-100-"}[name]
    ending = {"b": "bin" if name == "cifar10" else "binary", "p": "py" if name == "cifar10" else "python"}
    folder = tmp_path / (archive + ending[version[0]])
    content = write_cifar(folder, name, version.split()[0], "F" if "columns" in version else "C")
    train, test, classes = load_cifar(name, tmp_path if inside else folder)
    *parts, last = content.values()
    for images, expected in ((train, parts), (test, [last])):
        pixels = np.concatenate([part[0] for part in expected]).reshape(-1, 3, 32, 32)
        assert images.labels == [label for part in expected for label in part[1]]
        np.testing.assert_array_equal(images.images.numpy(), pixels)
        assert images.read(1)[2, 31, 5] == pixels[1, 2, 31, 5]
    assert classes == [f"class{i}" for i in range(10 if name == "cifar10" else 100)]


def test_cifar_as_newer_tools_write_it(tmp_path):
    folder = tmp_path / "cifar"
    expected = write_cifar(folder, "cifar10", "python")
    pixels, labels = expected["test_batch"]
    content = python2_pickle({b"data": pixels, b"labels": labels})
    (folder / "test_batch").write_bytes(content.replace(b"numpy.core.multiarray", b"numpy._core.multiarray"))
    np.testing.assert_array_equal(load_cifar("cifar10", folder)[1].images.flatten(1).numpy(), pixels)


def test_cifars_pickles_execute_nothing(tmp_path):
    folder = tmp_path / "cifar"
    write_cifar(folder, "cifar10", "python")
    (folder / "test_batch").write_bytes(pickle.dumps(Malicious(tmp_path / "executed"), 2))
    with pytest.raises(DataError, match=r"test_batch.*(io|_io|builtins|__builtin__)\.open"):
        load_cifar("cifar10", folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("version", "file", "damage", "message"),
    [
        ("binary", "data_batch_3.bin", lambda b: b[:-1], "records of 3073 bytes"),
        ("binary", "data_batch_3.bin", lambda b: b"", "records of 3073 bytes"),
        ("binary", "data_batch_3.bin", lambda b: b"\x0a" + b[1:], "label 10"),
        ("binary", "batches.meta.txt", lambda b: b"cat", "must name 10 classes, but names 1"),
        ("python", "data_batch_3", lambda b: b[: len(b) // 2], "not a file of CIFAR's version"),
        ("python", "data_batch_3", lambda b: b"hello", "not a file of CIFAR's version"),
        ("python", "data_batch_3", lambda b: python2_pickle([1]), "dictionary with an array"),
        ("python", "data_batch_3", lambda b: python2_pickle({b"data": np.zeros(3), b"labels": [1]}), "uint8"),
        (
            "python",
            "data_batch_3",
            lambda b: python2_pickle({b"data": np.zeros((2, 9), np.uint8), b"labels": [1]}),
            "3072 values for each image",
        ),
        (
            "python",
            "data_batch_3",
            lambda b: python2_pickle({b"data": np.zeros((1, PIXELS), np.uint8), b"labels": [b"1"]}),
            "label b'1'",
        ),
        ("python", "batches.meta", lambda b: python2_pickle({}), "must name 10 classes, but names 0"),
    ],
)
def test_damaged_cifar(tmp_path, version, file, damage, message):
    folder = tmp_path / "cifar"
    write_cifar(folder, "cifar10", version)
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(DataError, match=message) as error:
        load_cifar("cifar10", folder)
    assert file in str(error.value)


def test_missing_cifar(tmp_path):
    with pytest.raises(DataError, match="does not hold the files of cifar100"):
        load_cifar("cifar100", tmp_path)


def test_statistics_of_bytes():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), dtype=np.uint8))
    mean, std = TensorImages(images, [0] * 7).statistics()
    values = images.numpy() / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)))
    np.testing.assert_allclose(std, values.std((0, 2, 3)))


# --- Folders ----------------------------------------------------------------------------------------------


def test_folders(tmp_path):
    write_images(tmp_path)
    (tmp_path / "train" / "top" / "notes.txt").write_text("no image")
    train, test, classes = load_folder(tmp_path)
    assert classes == ["left", "top"]
    assert (train.labels, test.labels) == ([0] * 8 + [1] * 8, [0] * 4 + [1] * 4)
    with Image.open(tmp_path / "train" / "top" / "02.png") as image:
        assert train.read(10).tobytes() == image.convert("RGB").tobytes()
    assert load_folder(tmp_path, 1)[0].read(0).mode == "L"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train").rename(root / "training"), "must have a folder 'train'"),
        (lambda root: (root / "val").rename(root / "validation"), "folder 'val' or 'test'"),
        (lambda root: (root / "val" / "other").mkdir(), "classes that .* has not: other"),
        (lambda root: (root / "train" / "other").mkdir(), "no images .* of the classes: other"),
        (lambda root: [f.unlink() for f in root.glob("val/*/*")], "has no images"),
        (
            lambda root: [f.rename(f.with_suffix(".txt")) for f in root.glob("train/*/*")],
            "of the classes: left, top",
        ),
    ],
)
def test_bad_folders(tmp_path, change, message):
    write_images(tmp_path, 1, 1)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        load_folder(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"GIF89a" + b[6:]])
def test_a_bad_image_is_named(tmp_path, damage):
    write_images(tmp_path, 1, 1)
    file = tmp_path / "train" / "left" / "00.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(BadImageError, match=str(file)):
        load_folder(tmp_path)[0].read(0)


def test_statistics_must_fit_the_channels(tmp_path):
    write_images(tmp_path, 2, 1)
    with pytest.raises(ConfigError, match="each of the 3 channels"):
        load_data(from_mapping(options(tmp_path, tmp_path / "run", mean=[0.5])))


# --- Transforms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(50, 40), (1, 300), (7, 1), (1, 1)])
def test_random_resized_crops_lie_inside_and_have_their_shape(size):
    crop, generator = RandomResizedCrop(8, (0.08, 1.0)), random.Random(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = crop.box(size, generator)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        areas.append((right - left) * (bottom - top) / (size[0] * size[1]))
        if size == (50, 40):
            ratio = (right - left) / (bottom - top)
            assert 0.6 < ratio < 1.6  # 3/4 to 4/3, but for rounding to whole pixels
    if size == (50, 40):
        assert min(areas) < 0.12
        assert max(areas) > 0.75
        assert 0.4 < sum(areas) / len(areas) < 0.6


def test_a_random_resized_crop_is_the_part_resized():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8))
    crop = RandomResizedCrop(8)
    left, top, right, bottom = crop.box((40, 30), random.Random(3))
    expected = image.crop((left, top, right, bottom)).resize((8, 8), Image.Resampling.BILINEAR)
    assert crop(image, random.Random(3)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (5, 64), (9, 9)])
def test_the_middle_is_cropped(shape):
    columns = np.arange(shape[1])[None] + np.zeros((shape[0], 1))
    image = Image.fromarray(columns.astype(np.uint8))
    middle = np.asarray(ResizeAndCenterCrop(8, 9)(image, random.Random(0)))
    assert middle.shape == (8, 8)
    # A ramp stays one, and its middle stays in the middle (to the rounding of a half pixel and of grey values).
    scale = min(shape) / 9
    assert abs(middle.mean() - (shape[1] - 1) / 2) <= 0.5 * scale + 0.5


def test_flips():
    image = torch.arange(6.0).view(1, 2, 3)
    results = [RandomFlip()(image, random.Random(seed)) for seed in range(200)]
    mirrored = [torch.equal(result, image.flip(2)) for result in results]
    assert all(torch.equal(r, image) or m for r, m in zip(results, mirrored, strict=True))
    assert 70 < sum(mirrored) < 130
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    flipped = [RandomFlip()(picture, random.Random(seed)).tobytes() for seed in range(200)]
    assert [f == bytes([2, 1, 0, 5, 4, 3]) for f in flipped] == mirrored


def test_random_crops_shift():
    image = torch.rand(2, 3, 4)
    seen = set()
    for seed in range(200):
        result = RandomCrop(1)(image, random.Random(seed))
        assert result.shape == image.shape
        padded = np.pad(image.numpy(), ((0, 0), (1, 1), (1, 1)))
        matches = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if (padded[:, i : i + 3, j : j + 4] == result.numpy()).all()
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 9


def test_normalisation():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    expected = torch.from_numpy(((pixels / 255 - mean) / std).transpose(2, 0, 1)).float()
    normalize = Normalize(mean, std)
    torch.testing.assert_close(normalize(Image.fromarray(pixels), random.Random(0)), expected)
    torch.testing.assert_close(
        normalize(torch.from_numpy(pixels).permute(2, 0, 1), random.Random(0)), expected
    )
    grey = Image.fromarray(pixels[..., 0])
    torch.testing.assert_close(Normalize([0.1], [0.5])(grey, random.Random(0)), expected[:1])


# --- Order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_steps_have_the_same_images_however_they_are_shared(processes, accumulate):
    def steps(processes, accumulate, epoch):
        shares = []
        for rank in range(processes):
            order = TrainingOrder(67, 12, accumulate, rank, processes, seed=5)
            order.epoch = epoch
            batches = list(order)
            assert len(batches) == len(order) == 5 * accumulate
            assert {len(batch) for batch in batches} == {12 // (processes * accumulate)}
            shares.append(
                [list(chain(*batches[i : i + accumulate])) for i in range(0, len(batches), accumulate)]
            )
        return [list(chain(*parts)) for parts in zip(*shares, strict=True)]

    for epoch in (0, 1):
        assert steps(processes, accumulate, epoch) == steps(1, 1, epoch)
    keys = [key for step in steps(processes, accumulate, 1) for key in step]
    assert {epoch for epoch, _ in keys} == {1}
    assert len({index for _, index in keys}) == 60
    assert steps(1, 1, 0) != [[(0, i) for _, i in step] for step in steps(1, 1, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 10, 1, 0, 3, 0), "multiple of the 3 process"),
        ((9, 10, 1, 0, 1, 0), "more than the 9 training images"),
    ],
)
def test_orders_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TrainingOrder(*arguments)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_test_image_comes_once(processes):
    orders = [TestOrder(11, 3, rank, processes) for rank in range(processes)]
    assert all(len(order) == len(list(order)) for order in orders)
    assert sorted(index for order in orders for batch in order for _, index in batch) == list(range(11))


def test_images_do_not_depend_on_the_number_of_workers(tmp_path):
    write_images(tmp_path)
    seen = []
    for workers in (0, 2):
        config = from_mapping(options(tmp_path, tmp_path / "run", workers=workers))
        data = load_data(config)
        order = TrainingOrder(16, 4, 1, 0, 1, seed=0)
        loader = make_loader(data.train, data.train_transform, order, config, train=True)
        epochs = []
        for order.epoch in (0, 1):
            batches = list(loader)
            epochs.append((torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])))
        seen.append(epochs)
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    same = seen[0][0][0].sort(0).values.eq(seen[0][1][0].sort(0).values).all()
    assert not same  # another epoch, other crops
