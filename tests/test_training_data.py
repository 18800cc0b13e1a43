"""The data, the order it comes in, and the parts of a task by themselves."""

from __future__ import annotations

import itertools
import math
import os
import struct
from types import SimpleNamespace

import pytest
import torch
from training_cases import NETWORK, need_libraries, write_images

need_libraries()

import torchvision

from involution.training import (
    BadImageError,
    CheckpointError,
    Cifar,
    Classification,
    DataError,
    Digits,
    ImageFolder,
    data_of,
)
from involution.training.images import read_image
from involution.training.loading import Batch, Order

DATA = {"classes": ["a", "b", "c"], "input": {"channels": 3}}


def test_digits():
    data = Digits()
    data.setup("fit")
    train, test = (torch.stack([image for image, _ in data.parts[part]]) for part in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360) and train.min() == 0 and train.max() == 1
    seen, unseen = ({tuple(image.flatten().tolist()) for image in part} for part in (train, test))
    assert not seen & unseen
    counts = torch.tensor([label for _, label in data.parts["test"]]).bincount()
    assert counts.min() >= 35 and counts.max() <= 37
    images = torch.cat([batch.images for batch in data.val_dataloader()]).double()
    expected = (test.double() - train.double().mean()) / train.double().std(correction=0)
    torch.testing.assert_close(images, expected)
    first = next(iter(data.train_dataloader())).images
    assert first.shape == (64, 1, 8, 8) and not torch.equal(first, first.round())


def test_data_of_a_checkpoint():
    info = Digits(batch_size=7).description
    expected = {"batch_size": 7, "workers": None, "on_bad_image": "stop", "seed": 3}
    assert data_of(info, seed=3).hparams == expected
    with pytest.raises(DataError, match=r"Digits cannot be made with the arguments .*'path'"):
        data_of(info, path="elsewhere")
    with pytest.raises(CheckpointError, match=r"data is 'Mine', which is not in involution.training"):
        data_of({"data": {"name": "Mine", "arguments": {}}})


@pytest.mark.parametrize("kind", [10, 100])
def test_cifar(tmp_path, monkeypatch, kind):
    """torchvision's own reader, which its tests cover, is replaced by one that returns a white image."""
    with pytest.raises(DataError, match=f"CIFAR is not in '{tmp_path}', or is damaged"):
        Cifar(str(tmp_path), kind)

    class Reader:
        classes = ("bird", "frog")

        def __init__(self, path, train, transform):
            white = numpy.full((32, 32, 3), 255, numpy.uint8)
            self.items = [(transform(white), label) for label in ((0, 1, 1) if train else (1,))]
            assert path == str(tmp_path)

        __getitem__, __len__ = (lambda self, i: self.items[i]), (lambda self: len(self.items))

    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(torchvision.datasets, f"CIFAR{kind}", Reader)
    data = Cifar(str(tmp_path), kind, batch_size=3)
    data.setup("fit")
    assert data.classes == ["bird", "frog"] and len(data.parts["train"]) == 3
    (batch,) = data.val_dataloader()
    mean, std = (torch.tensor(values) for values in (data.mean, data.std))
    torch.testing.assert_close(batch.images[0, :, 0, 0], (1 - mean) / std)
    assert batch.targets.tolist() == [1] and batch.images.shape == (1, 3, 32, 32)


def test_folders(tmp_path):
    data = ImageFolder(str(write_images(tmp_path)), image_size=7, batch_size=5, workers=0)
    data.setup("fit")
    assert data.classes == ["left", "top"] and len(data.parts["train"]) == 16
    sizes = [batch.images.shape for batch in data.val_dataloader()]
    assert sizes == [(5, 3, 7, 7), (3, 3, 7, 7)]
    (tmp_path / "train" / "right").mkdir()
    (tmp_path / "train" / ".hidden").mkdir()
    assert ImageFolder(str(tmp_path)).classes == ["left", "right", "top"]
    with pytest.raises(DataError, match=r"lacks images.*right"):
        ImageFolder(str(tmp_path)).setup("fit")
    with pytest.raises(DataError, match=r"There are no folders in .*nowhere"):
        ImageFolder(str(tmp_path / "nowhere"))


def test_a_class_folder_that_is_not_utf8(tmp_path):
    write_images(tmp_path)
    try:
        os.mkdir(os.fsencode(tmp_path / "train") + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    with pytest.raises(DataError, match=r"a folder whose name is not UTF-8, b'caf\\xe9': rename it"):
        ImageFolder(str(tmp_path))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "inverted.tif"])
def test_sixteen_bits_are_scaled_by_their_own_depth(tmp_path, name):
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    values = numpy.array([[0, 255, 256], [4096, 32768, 65535]], dtype=numpy.uint16)
    tags = {"tiffinfo": {262: 0}} if name == "inverted.tif" else {}
    image.fromarray(values).save(tmp_path / name, **tags)
    expected = torch.tensor(values.astype(float)) / 65535
    expected = 1 - expected if tags else expected
    for channels in (1, 3):
        got = read_image(str(tmp_path / name), channels)
        torch.testing.assert_close(got.double(), expected.expand(channels, 2, 3), rtol=0, atol=1e-7)


def test_twelve_bits(tmp_path):
    """A TIFF of 12 bits, written by hand: two pixels of 4095 and 256 in three bytes."""
    tags = {
        256: 2,
        257: 1,
        258: 12,
        259: 1,
        262: 1,
        273: 8,
        277: 1,
        278: 1,
        279: 3,
    }  # 4-byte ones: offset and size
    entries = [
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items()
    ]
    header = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf1\x00\0" + struct.pack("<H", len(entries))
    (tmp_path / "deep.tif").write_bytes(header + b"".join(entries) + bytes(4))
    torch.testing.assert_close(read_image(str(tmp_path / "deep.tif"), 1), torch.tensor([[[1.0, 256 / 4095]]]))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_pixels_without_a_white_are_refused(tmp_path, dtype):
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    image.fromarray(numpy.ones((2, 3), dtype=dtype)).save(tmp_path / "x.tif")
    with pytest.raises(
        BadImageError, match=r"x\.tif' cannot be read: its pixels are .*whose white is not known"
    ):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bits_are_as_pillow_converts_them(tmp_path, mode):
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    pixels = numpy.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=numpy.uint8)
    image.fromarray(pixels).convert(mode).save(tmp_path / "x.tif")
    with image.open(tmp_path / "x.tif") as read:
        expected = torch.tensor(numpy.asarray(read.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_image(str(tmp_path / "x.tif")), expected)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_are_the_same_however_they_are_shared(processes):
    whole, parts = Order(20, 6, 0), [Order(20, 6, 0, rank, processes) for rank in range(processes)]
    for order in (whole, *parts):
        order.set_epoch(2)
    shared = [[key for part in batch for key in part] for batch in zip(*parts, strict=True)]
    assert shared == list(whole) and len(whole) == 3
    assert len({index for batch in shared for _, index in batch}) == 18
    whole.set_epoch(3)
    assert [[index for _, index in batch] for batch in whole] != [[i for _, i in batch] for batch in shared]
    tests = [Order(7, 6, None, rank, processes) for rank in range(processes)]
    assert sorted(index for order in tests for batch in order for _, index in batch) == list(range(7))
    for arguments, message in (((20, 7, 0, 0, 2), "multiple of 2 process"), ((3, 4, 0), "more than the 3")):
        with pytest.raises(DataError, match=message):
            Order(*arguments)


def test_an_image_is_a_function_of_seed_epoch_and_index(tmp_path):
    write_images(tmp_path)

    def epoch(number: int, **arguments) -> torch.Tensor:
        data = ImageFolder(str(tmp_path), image_size=8, batch_size=4, **arguments)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.order.set_epoch(number)
        torch.rand(number + 3)  # whatever else draws random numbers
        return torch.cat([batch.images for batch in loader])

    assert torch.equal(epoch(1, workers=0), epoch(1, workers=2))
    assert not torch.equal(epoch(1, workers=0), epoch(2, workers=0))
    assert not torch.equal(epoch(1, workers=0), epoch(1, workers=0, seed=1))


SCHEDULES = {
    "cosine": lambda step: (1 + math.cos(math.pi * step / 40)) / 2,
    "steps": lambda step: 0.1 ** ((step >= 12) + (step >= 30)),  # of 4 steps an epoch, after 3 and 7.5 epochs
    "polynomial": lambda step: (1 - step / 40) ** 0.9,
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_is_its_formula(schedule):
    sgd = lambda groups: torch.optim.SGD(groups, lr=0.8)  # noqa: E731
    options = {"schedule": schedule, "milestones": (3, 7.5), "warmup_epochs": 2, "warmup_factor": 0.25}
    task = Classification(DATA, network_arguments=NETWORK, optimizer=sgd, **options)
    task._trainer = SimpleNamespace(estimated_stepping_batches=40, max_epochs=10)
    made = task.configure_optimizers()
    for step in range(40):
        expected = 0.8 * SCHEDULES[schedule](step) * (0.25 + 0.75 * min(1, step / 8))
        assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9)
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_norms_and_biases_do_not_decay(kind):
    for decay_all in (False, True):
        make = lambda groups: kind(groups, lr=0.1, weight_decay=0.5)  # noqa: E731
        task = Classification(DATA, network_arguments=NETWORK, optimizer=make, decay_all=decay_all)
        task._trainer = SimpleNamespace(estimated_stepping_batches=4, max_epochs=1)
        task.network.head.weight.requires_grad_(False)
        optimizer = task.configure_optimizers()["optimizer"]
        assert type(optimizer) is kind
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in task.network.named_parameters():
            spared = not decay_all and (parameter.ndim <= 1 or name.endswith("bias"))
            assert decay.get(id(parameter)) == (None if name == "head.weight" else 0.0 if spared else 0.5)


def test_losses_and_scores_are_their_definitions():
    task = Classification(DATA, label_smoothing=0.3, network_arguments=NETWORK).eval()
    images, labels = torch.rand(7, 3, 8, 8), torch.tensor([0, 1, 2, 1, 0, 2, 2])
    logits = task.network(images).double().log_softmax(1)
    own = -logits[range(7), labels]
    expected = 0.7 * own.mean() + 0.3 * -logits.mean()
    torch.testing.assert_close(task.loss(Batch(images, labels, [])).double(), expected)
    for part in (slice(0, 4), slice(4, 7)):
        task.measure(Batch(images[part], labels[part], []))
    with pytest.warns(UserWarning, match=r"1 image\(s\) skipped; one: unreadable"):
        task.validation_step(Batch(torch.empty(0), [], ["unreadable"]), 0)
    scores, predicted = task.scores(), logits.argmax(1)
    torch.testing.assert_close(scores["val_loss"].double(), own.mean())
    assert scores["val_accuracy"] == (predicted == labels).float().mean()
    for i, j in itertools.product(range(3), range(3)):
        assert task.confusion[i, j] == ((labels == i) & (predicted == j)).sum()
