"""Checkpoints: whole or not there, and never trusted."""

from __future__ import annotations

import os
import pickle
import random

import pytest
import torch
from training_cases import Malicious

from involution.models import create_model
from involution.training import CheckpointError, load_model, read_checkpoint
from involution.training.checkpoint import random_state, save_checkpoint, set_random_state, write_atomically

ARGUMENTS = {
    "num_classes": 3,
    "in_channels": 1,
    "blocks": [1],
    "widths": [8],
    "strides": [1],
    "group_channels": 4,
}


@pytest.fixture
def content() -> dict:
    torch.manual_seed(0)
    model = create_model("rednet_tiny", **ARGUMENTS)
    return {
        "model": {"name": "rednet_tiny", "arguments": ARGUMENTS},
        "state_dict": model.state_dict(),
        "ema_state_dict": None,
        "optimizer": {},
        "scheduler": {"taken": 1},
        "scaler": None,
        "epoch": 1,
        "rng": [random_state(torch.device("cpu"))],
        "config": {},
        "classes": ["a", "b", "c"],
        "input": {"channels": 1, "size": [8, 8], "mean": [0.5], "std": [0.5]},
        "metrics": {"test_accuracy": 0.5, "history": []},
    }


@pytest.fixture
def checkpoint(content, tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content)
    return path


def test_the_model_comes_back(content, checkpoint):
    model, info = load_model(checkpoint)
    assert not model.training
    torch.testing.assert_close(dict(model.state_dict()), dict(content["state_dict"]), rtol=0, atol=0)
    assert info == {key: content[key] for key in ("model", "epoch", "config", "classes", "input", "metrics")}
    assert torch.load(checkpoint, weights_only=True)["format"] == "involution-training"
    assert torch.load(checkpoint, weights_only=True)["version"] == 1


def test_the_moving_average_is_what_comes_back(content, tmp_path):
    content["ema_state_dict"] = {
        name: value + 1 if value.is_floating_point() else value
        for name, value in content["state_dict"].items()
    }
    save_checkpoint(tmp_path / "ema.pt", content)
    model, _ = load_model(tmp_path / "ema.pt")
    torch.testing.assert_close(dict(model.state_dict()), content["ema_state_dict"], rtol=0, atol=0)


def damage_tensor(data: bytes) -> bytes:
    """One byte of a weight, which torch.load does not notice."""
    place = data.index(
        torch.load(__import__("io").BytesIO(data), weights_only=True)["state_dict"]["head.weight"]
        .numpy()
        .tobytes()
    )
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b"hello",
        lambda b: b[: len(b) // 2],
        lambda b: b[:-10],
        lambda b: b[100:],
        damage_tensor,
    ],
    ids=["empty", "text", "half", "end", "begin", "bit"],
)
def test_damage_is_noticed(checkpoint, damage):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(CheckpointError, match=r"last\.pt.*damaged"):
        load_model(checkpoint)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        read_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "has version 2 of its format"),
        ({"format": "other"}, "does not name the format"),
        ({"epoch": "1"}, "'epoch' is missing or of the wrong type"),
        ({"state_dict": None}, "'state_dict' is missing or of the wrong type"),
        ({"model": {"name": "resnet", "arguments": {}}}, "cannot be built: There is no model 'resnet'"),
        ({"model": {"name": "rednet_tiny"}}, "cannot be built: 'arguments'"),
        ({"model": {"name": "rednet_tiny", "arguments": {"colour": 1}}}, "cannot be built.*colour"),
        ({"state_dict": {}}, "do not fit the model"),
    ],
)
def test_what_does_not_fit_is_refused(content, tmp_path, change, message):
    path = tmp_path / "last.pt"
    torch.save({"format": "involution-training", "version": 1, **content, **change}, path)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}])
def test_other_files_of_torch_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="does not name the format"):
        read_checkpoint(tmp_path / "other.pt")


@pytest.mark.parametrize("write", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c))])
def test_nothing_is_executed(content, tmp_path, write):
    path = tmp_path / "last.pt"
    write(
        {"format": "involution-training", "version": 1, **content, "epoch": Malicious(tmp_path / "executed")},
        path,
    )
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("when", ["writing", "syncing", "replacing"])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, when):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(*_):
        raise OSError("the disk is full")

    if when != "writing":
        monkeypatch.setattr(os, {"syncing": "fsync", "replacing": "replace"}[when], fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, fail if when == "writing" else lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_new_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    write_atomically(tmp_path / "file", lambda file: file.write(b"new"))
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_random_numbers_go_on(tmp_path):
    numpy = pytest.importorskip("numpy")
    cpu = torch.device("cpu")

    def draw():
        return random.random(), random.gauss(0, 1), numpy.random.randn(3).tolist(), torch.rand(3).tolist()

    draw()
    torch.save(random_state(cpu), tmp_path / "state")
    expected = draw()
    draw()
    set_random_state(torch.load(tmp_path / "state", weights_only=True), cpu)
    assert draw() == expected
