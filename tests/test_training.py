"""Training as a user sees it: runs, what they leave behind, interruptions, and everything that goes wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from training_cases import NETWORK, curve, need_libraries, train_keeping, words, write_images

need_libraries()

from training_processes import INTERRUPTED, share

from involution import evaluate as evaluation
from involution import train as training
from involution.models import load_checkpoint, rednet_tiny
from involution.train import train
from involution.training import CheckpointError, Classification, DataError, NonFiniteError, load_model
from involution.training.checkpoint import write_atomically

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return train_keeping(folder, words(data, folder / "whole", checkpoint_every=1))


def environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def process(*command: object) -> subprocess.CompletedProcess:
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)


# --- Runs -------------------------------------------------------------------------------------------------


def test_the_commands_without_options(tmp_path, monkeypatch, capsys):
    """Digits, with fewer epochs; evaluation repeats the accuracy and draws the confusion matrix."""
    monkeypatch.chdir(tmp_path)
    assert training.main(["--trainer.max_epochs=15"]) == 0
    accuracy = float(curve(Path("runs/digits-1"))[-1]["val_accuracy"])
    assert accuracy >= 0.97
    capsys.readouterr()
    assert evaluation.main([]) == 0
    printed = capsys.readouterr().out
    assert f"{round(360 * accuracy)} of 360 test images right" in printed
    assert printed.count("as training recorded") == 2
    names = {"config.yaml", "last.ckpt", "best.ckpt", "log.csv", "curves.png", "confusion.png"}
    assert {file.name for file in Path("runs/digits-1").iterdir()} == names
    assert all(Path("runs/digits-1", n).read_bytes()[:4] == b"\x89PNG" for n in names if n.endswith("png"))


def test_a_checkpoint_is_what_its_description_says(whole):
    content = torch.load(whole / "last.ckpt", weights_only=True)
    info = content["involution"]
    assert (info["version"], info["task"], info["data"]["name"]) == (2, "Classification", "ImageFolder")
    assert info["classes"] == ["left", "top"] and info["input"]["size"] == [8, 8]
    assert info["metrics"]["val_loss"] == float(curve(whole)[-1]["val_loss"])
    report = load_checkpoint(rednet_tiny(num_classes=2, **NETWORK), whole / "last.ckpt")
    assert report.loaded == len(content["state_dict"])  # by the network's own names
    model, info = load_model(whole / "last.ckpt")
    assert not model.training and info["epoch"] == 3
    best = load_model(whole / "best.ckpt")[1]["metrics"]["val_accuracy"]
    assert best == max(float(row["val_accuracy"]) for row in curve(whole))


def test_evaluation_repeats_the_scores_without_training_images(data, whole, tmp_path):
    shutil.copytree(data / "val", tmp_path / "val")
    result = evaluation.evaluate(whole, data={"path": str(tmp_path)}, accelerator="cpu")
    assert result.metrics == {name: result.recorded[name] for name in ("val_accuracy", "val_loss")}
    assert result.task.confusion.sum() == 8
    assert result.task.confusion.trace() == round(8 * result.metrics["val_accuracy"])
    (tmp_path / "val" / "right").mkdir()
    with pytest.raises(DataError, match=r"right.*none of \['left', 'top'\]"):
        evaluation.evaluate(whole, data={"path": str(tmp_path)}, accelerator="cpu")


def test_bfloat16_tensorboard_and_the_progress_bar(data, whole, tmp_path, capsys):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "board")}}
    options = {"trainer_enable_progress_bar": True, "trainer_log_every_n_steps": 1, "trainer_logger": board}
    options |= {"trainer_precision": "bf16-mixed", "model_channels_last": False}
    trainer = train(words(data, tmp_path / "run", **options))
    assert trainer.precision == "bf16-mixed"
    assert next(trainer.lightning_module.network.parameters()).dtype == torch.float32
    got, expected = ([float(row["train_loss"]) for row in curve(path)] for path in (tmp_path / "run", whole))
    assert got != expected and got == pytest.approx(expected, rel=0.02)
    assert "Epoch 2" in capsys.readouterr().out
    (file,) = (tmp_path / "board").rglob("events.*")
    log = events.EventAccumulator(str(file.parent)).Reload()
    expected = [float(row["val_loss"]) for row in curve(tmp_path / "run")]
    assert [event.value for event in log.Scalars("val_loss")] == pytest.approx(expected)


def test_channels_last_is_the_default(whole):
    task = Classification(load_model(whole / "last.ckpt")[1], network_arguments=NETWORK)
    seen = []
    task.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.eval()(torch.rand(2, 3, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert next(task.network.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_the_network_is_compiled_where_told(data, tmp_path, monkeypatch):
    """That compiled networks compute the same is what tests/test_compile_models.py shows."""
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    train(words(data, tmp_path / "run", model_compile=True, trainer_max_epochs=1))
    assert compiled == ["RedNet"]


def test_the_moving_average_is_what_is_tested_and_kept(data, tmp_path, monkeypatch):
    after: list[dict] = []

    def record(self, *_):
        after.append({name: p.detach().clone() for name, p in self.network.named_parameters()})

    monkeypatch.setattr(Classification, "on_train_batch_end", record, raising=False)
    average = [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.5}}]
    train(words(data, tmp_path / "run", trainer_callbacks=average, trainer_max_epochs=1))
    kept = load_model(tmp_path / "run" / "last.ckpt")[0]
    for name, parameter in kept.named_parameters():
        a, b, c, d = (weights[name] for weights in after)
        torch.testing.assert_close(parameter.detach(), a / 8 + b / 8 + c / 4 + d / 2)
    result = evaluation.evaluate(tmp_path / "run", accelerator="cpu")
    assert result.metrics["val_loss"] == result.recorded["val_loss"]


def test_gradients_are_clipped_by_default(data, tmp_path, whole, monkeypatch):
    assert "gradient_clip_val: 1.0" in (whole / "config.yaml").read_text()
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "weight_decay": 0.0}}
    small = {"data_batch_size": 16, "trainer_max_epochs": 1, "model_warmup_epochs": 0}
    before: list[torch.Tensor] = []

    def record(self):
        before.extend(p.detach().clone() for p in self.network.parameters())

    monkeypatch.setattr(Classification, "on_train_start", record, raising=False)
    train(words(data, tmp_path / "run", model_optimizer=sgd, trainer_gradient_clip_val=0.01, **small))
    model = load_model(tmp_path / "run" / "last.ckpt")[0]
    moved = [p - q for p, q in zip(model.parameters(), before, strict=True)]
    assert torch.nn.utils.get_total_norm(moved).item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert float(curve(tmp_path / "run")[0]["grad_norm"]) > 0.01


# --- Options ----------------------------------------------------------------------------------------------


def test_files_and_names(data, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 7}\ndata: {class_path: Digits}\n")
    for arguments in (["--config", "mine.yaml"], ["--data.batch_size=32", "-c", "mine.yaml"]):
        with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            train([*arguments, "--print_config"])
        printed = capsys.readouterr().out
        assert ended.value.code == 0
        assert "max_epochs: 7" in printed and "involution.training.Digits" in printed
    assert "batch_size: 32" in printed


def test_the_recipe_of_the_paper(capsys):
    with pytest.raises(SystemExit):
        train(["--config=imagenet", "--data.path=there", "--print_config"])
    printed = capsys.readouterr().out
    lines = "network: rednet50, class_path: torch.optim.SGD, lr: 0.8, momentum: 0.9, nesterov: true, decay_all: true"
    lines += ", weight_decay: 0.0001, warmup_epochs: 5.0, warmup_factor: 0.25, label_smoothing: 0.1, batch_size: 2048"
    for line in (lines + ", max_epochs: 130, gradient_clip_val: null, path: there").split(", "):
        assert f" {line}\n" in printed


def test_help(capsys):
    for command in (training.main, evaluation.main):
        with pytest.raises(SystemExit) as ended:
            command(["--help"])
        printed = capsys.readouterr().out
        assert ended.value.code == 0 and "--config" in printed and "--print_config" in printed
        assert "--trainer.profiler" not in printed and len(printed.splitlines()) < 140


def test_mistakes_end_the_command_with_a_sentence(data, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        training.main(["--data.batch_sise=3"])
    assert "batch_sise" in capsys.readouterr().err
    for command, message in (
        (lambda: training.main(words(data, whole)), "holds a run already. Go on by --resume"),
        (lambda: training.main(["--resume"]), "There is no run in"),
        (lambda: evaluation.main([]), "There is no run in"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            command()


# --- Interruptions ----------------------------------------------------------------------------------------


# Killed before the first checkpoint, within an epoch, at the end of the first one (3), and within the next.
@pytest.mark.parametrize("after", [None, 2, 3, 5])
def test_a_run_goes_on_as_if_nothing_had_happened(whole, after, tmp_path):
    shutil.copy(whole / "config.yaml", tmp_path)
    if after is not None:
        shutil.copy(whole.parent / f"after-{after}" / "last.ckpt", tmp_path)
    train(resume=tmp_path)
    assert curve(tmp_path) == curve(whole)
    mine, other = (load_model(path / "last.ckpt")[0].state_dict() for path in (tmp_path, whole))
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_run_goes_on_between_accumulated_steps(data, tmp_path):
    options = {"checkpoint_every": 1, "trainer_accumulate_grad_batches": 2}
    whole = train_keeping(tmp_path, words(data, tmp_path / "whole", **options))
    steps = []
    for kept in sorted(tmp_path.glob("after-*"))[:2]:  # within the first epoch, and at its end
        steps.append(torch.load(kept / "last.ckpt", weights_only=True)["global_step"])
        shutil.copy(whole / "config.yaml", kept)
        train(resume=kept)
        assert curve(kept) == curve(whole)
    assert steps == [1, 2]  # of two batches each


def test_a_run_that_is_killed(data, tmp_path):
    """With workers, a moving average and an image that is skipped."""
    images = shutil.copytree(data, tmp_path / "images")
    (images / "train" / "top" / "03.png").write_bytes(b"damaged")
    done = process(ROOT / "tests" / "training_processes.py", "kill", images, tmp_path / "killed")
    assert done.returncode == -9, done.stderr
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == 6
    with pytest.warns(UserWarning, match=r"1 image\(s\) skipped; one: .*03.png"):
        train(resume=tmp_path / "killed")
        train(words(images, tmp_path / "whole", **INTERRUPTED))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    assert [row["skipped_images"] for row in curve(tmp_path / "whole")] == ["1.0"] * 3


def test_a_run_does_not_go_on_with_other_data_or_steps(data, whole, tmp_path):
    run = shutil.copytree(whole.parent / "after-2", tmp_path / "run")
    shutil.copy(whole / "config.yaml", run)
    shutil.copytree(data, tmp_path / "images")
    for part in ("train", "val"):
        (tmp_path / "images" / part / "top").rename(tmp_path / "images" / part / "up")
    with pytest.raises(DataError, match=r"its classes were \['left', 'top'\], now \['left', 'up'\]"):
        train([f"--data.path={tmp_path / 'images'}"], resume=run)
    with pytest.raises(DataError, match=r"The run has 12 steps; with 16, its rates would be others"):
        train([f"--data.path={data}", "--trainer.max_epochs=4"], resume=run)


def test_two_processes_train_like_one(data, tmp_path):
    done = process(ROOT / "tests" / "training_processes.py", "share", data, tmp_path, 2)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        share(data, tmp_path, "1", patch)
    one, two = (torch.load(tmp_path / size / "last.ckpt", weights_only=True) for size in "12")
    torch.testing.assert_close(two["state_dict"], one["state_dict"], rtol=1e-4, atol=1e-6)
    for rows in zip(curve(tmp_path / "1"), curve(tmp_path / "2"), strict=True):
        a, b = ({name: float(value) for name, value in row.items()} for row in rows)
        assert b == pytest.approx(a, rel=1e-4)


# --- What goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, when):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(*_):
        raise OSError("no")

    if when == "rename":
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(path, fail if when == "write" else lambda file: file.write(b"new"))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_checkpoints_that_cannot_be_read(whole, tmp_path):
    numpy = pytest.importorskip("numpy")
    content = torch.load(whole / "last.ckpt", weights_only=True)
    good = (whole / "last.ckpt").read_bytes()
    for changed, message in (
        ({**content, "epoch": numpy.float64(3)}, r"numpy\._core\.multiarray\.scalar.*\.item\(\)"),
        ({**content, "epoch": Malicious(tmp_path / "executed")}, r"io\.open|builtins\.open"),
        ({"state_dict": {}}, "no checkpoint of involution.train"),
        ({**content, "involution": {"version": 1}}, "has version 1 of the format; this library reads 2"),
        (good[: len(good) // 2], "is damaged"),
        (good[:5000] + bytes(100) + good[5100:], "checksum"),
    ):
        path = tmp_path / "last.ckpt"
        path.write_bytes(changed) if isinstance(changed, bytes) else torch.save(changed, path)
        with pytest.raises(CheckpointError, match=message) as raised:
            load_model(path)
        assert str(path) in str(raised.value) and "\x1b" not in str(raised.value)
        shutil.copy(whole / "config.yaml", tmp_path)
        with pytest.raises(CheckpointError, match=message):
            train(resume=tmp_path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_model(tmp_path / "other.ckpt")


@pytest.mark.parametrize(("part", "workers"), [("train", 1), ("val", 0)])
def test_a_bad_image_stops_or_is_skipped(data, tmp_path, part, workers):
    images = shutil.copytree(data, tmp_path / "images")
    (images / part / "left" / "01.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"01\.png' cannot be read.*--data\.on_bad_image skip"):
        train(words(images, tmp_path / "stopped", data_workers=workers))
    with pytest.warns(UserWarning, match="01.png"):
        options = {"data_workers": workers, "data_on_bad_image": "skip", "trainer_max_epochs": 1}
        train(words(images, tmp_path / "run", **options))
    assert curve(tmp_path / "run")[0]["skipped_images"] == "1.0"
    if part == "val":
        with pytest.warns(UserWarning, match="01.png"):
            result = evaluation.evaluate(tmp_path / "run", accelerator="cpu")
        assert result.task.means["skipped_images"].compute() == 1 and result.task.confusion.sum() == 7
        assert "of 7 test images right, 1 skipped" in result.task.report(tmp_path)
    for file in (images / part).rglob("*.png"):
        file.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"png' cannot be read|No test image can be read"):
        train(words(images, tmp_path / "none", data_on_bad_image="skip"))


def test_a_single_image_too_small_for_batch_norm(data, tmp_path):
    with pytest.raises(
        DataError, match=r"image of 2 x 2 this .* 1 x 1 maps: give a larger --data.batch_size"
    ):
        train(words(data, tmp_path / "run", data_batch_size=1, data_image_size=2))


@pytest.mark.parametrize("bad", ["loss", "norm of the gradient"])
def test_what_is_not_finite_stops(data, tmp_path, monkeypatch, bad):
    loss = Classification.loss

    def spoiled(self, batch):
        value = loss(self, batch)
        if self.global_step == 2:
            value = value * float("nan") if bad == "loss" else value + (value - value.detach()).abs().sqrt()
        return value

    monkeypatch.setattr(Classification, "loss", spoiled)
    with pytest.raises(NonFiniteError, match=f"The {bad} .nan. is not finite at epoch 1, step 3. The learn"):
        train(words(data, tmp_path / "run"))
