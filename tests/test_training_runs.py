"""Runs as a whole: what they leave behind, interruptions, several processes, images that cannot be read."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import training_processes
from training_cases import curve, options, write_images

from involution import evaluate as evaluate_command
from involution import train as train_command
from involution.evaluate import confusion_table, evaluate, worst_confusions
from involution.training import (
    BadImageError,
    CheckpointError,
    Config,
    ConfigError,
    DataError,
    NonFiniteError,
    load_model,
    read_checkpoint,
    train,
)
from involution.training import runs as run_files
from involution.training import state as state_module
from involution.training.distributed import processor_threads

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are started: sums in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_images(tmp_path / "data")


@pytest.fixture
def run(data, tmp_path) -> Path:
    return train(options(data, tmp_path / "run"), progress=False).path


# --- A run ------------------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(data, tmp_path, capsys):
    result = train(
        options(data, tmp_path / "run", plot=pytest.importorskip("matplotlib") is not None, epochs=5)
    )
    names = {entry.name for entry in result.path.iterdir()}
    assert names == {"config.json", "last.pt", "best.pt", "log.csv", "curves.png"}
    assert (result.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with open(result.path / "log.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == [{name: float(value) for name, value in row.items()} for row in result.history]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert json.loads((result.path / "config.json").read_text())["epochs"] == 5
    best = read_checkpoint(result.path / "best.pt")["metrics"]
    assert best["test_accuracy"] == result.best_accuracy == max(row["test_accuracy"] for row in rows)
    assert best["epoch"] == 1 + [row["test_accuracy"] for row in rows].index(result.best_accuracy)
    assert result.accuracy == rows[-1]["test_accuracy"]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    out = capsys.readouterr().out
    assert "epoch 5/5" in out
    assert f"Test accuracy {100 * result.accuracy:.2f}%" in out


def test_the_checkpoint_has_what_its_description_says(run):
    content = torch.load(run / "last.pt", weights_only=True)
    described = (
        "format version model state_dict ema_state_dict optimizer scheduler scaler epoch rng config classes"
    )
    assert set(content) == {*described.split(), "input", "metrics"}
    assert content["model"]["name"] == "rednet_tiny"
    assert content["model"]["arguments"]["num_classes"] == 2
    assert (content["ema_state_dict"], content["epoch"], content["classes"]) == (None, 3, ["left", "top"])
    assert content["input"]["channels"] == 3
    assert content["input"]["size"] == [8, 8]


def test_a_seed_decides_a_run(data, tmp_path):
    runs = [
        train(options(data, tmp_path / str(number), seed=seed, epochs=1), progress=False).history
        for number, seed in enumerate((1, 1, 2))
    ]
    assert curve(runs[0]) == curve(runs[1])
    assert curve(runs[0]) != curve(runs[2])


@pytest.mark.parametrize(
    ("settings", "expected"), [({"threads": 2}, 2), ({}, 1), ({"data": "cifar10", "data_path": "x"}, 3)]
)
def test_threads_are_set_and_set_back(settings, expected):
    torch.set_num_threads(3)
    with processor_threads(Config(**settings)):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3


def test_a_folder_is_not_used_twice(data, run):
    with pytest.raises(ConfigError, match="holds a run already"):
        train(options(data, run), progress=False)


def test_runs_are_numbered(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [train(options(data, None, epochs=1), progress=False).path for _ in range(2)]
    assert paths == [Path("runs/folder-1"), Path("runs/folder-2")]
    assert run_files.newest_run() == paths[1]
    assert evaluate(progress=False).checkpoint == paths[1] / "last.pt"


def test_without_a_run_evaluation_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        evaluate_command.main(["--no-plot"])
    assert "python -m involution.train" in str(error.value.code)


@pytest.mark.parametrize(
    "settings", [{"optimizer": "sgd"}, {"precision": "bfloat16", "channels_last": False}]
)
def test_other_ways_to_train(data, tmp_path, settings):
    result = train(options(data, tmp_path / "run", epochs=1, **settings), progress=False)
    assert evaluate(result.path, progress=False).accuracy == result.accuracy


def test_compiled_training_is_the_same_training(data, tmp_path, monkeypatch):
    compile, compiled = torch.compile, []

    def captured(model, **_):
        compiled.append(model)
        return compile(
            model, backend="aot_eager"
        )  # traced as ever, without the time that generating code takes

    plain = train(options(data, tmp_path / "plain", epochs=1), progress=False)
    monkeypatch.setattr(torch, "compile", captured)
    result = train(options(data, tmp_path / "compiled", epochs=1, compile=True), progress=False)
    assert len(compiled) == 1
    for name, value in plain.history[0].items():
        if name != "seconds":
            assert result.history[0][name] == pytest.approx(value, rel=1e-4)


def test_a_few_epochs_on_digits(tmp_path, capsys):
    pytest.importorskip("sklearn")
    arguments = [
        "--epochs=5",
        "--warmup-epochs=1",
        "--no-plot",
        "--device=cpu",
        f"--output={tmp_path / 'run'}",
    ]
    assert train_command.main(arguments) == 0
    result = evaluate(tmp_path / "run", device="cpu", progress=False)
    assert result.accuracy == result.recorded > 0.25  # a tenth by chance
    assert "1437 images to train and 360 to test on" in capsys.readouterr().out


def test_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(options(data, tmp_path / "run", tensorboard=True, epochs=2), progress=False)
    events = EventAccumulator(str(result.path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("test/accuracy")]
    assert found == [(row["epoch"], pytest.approx(row["test_accuracy"])) for row in result.history]


@pytest.mark.parametrize(
    ("module", "settings"),
    [("matplotlib", {"plot": True}), ("torch.utils.tensorboard", {"tensorboard": True}), ("PIL.Image", {})],
)
def test_a_missing_extra_is_named_before_training(data, tmp_path, monkeypatch, module, settings):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[train\]'"):
        train(options(data, tmp_path / "run", **settings), progress=False)
    assert not (tmp_path / "run").exists()


def test_sync_batch_norm_is_for_gpus(data, tmp_path):
    with pytest.raises(ConfigError, match="for CUDA"):
        train(options(data, tmp_path / "run", sync_batch_norm=True), progress=False)


# --- Evaluation -------------------------------------------------------------------------------------------


def test_evaluation_repeats_the_accuracy(data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    result = train(options(data, tmp_path / "run", ema_decay=0.9, epochs=6, batch_size=4), progress=False)
    evaluation = evaluate(result.path, progress=False)
    row = result.history[-1]
    assert (evaluation.accuracy, evaluation.loss) == (row["test_accuracy"], row["test_loss"])
    assert evaluation.recorded == evaluation.accuracy
    assert evaluation.confusion.sum(1).tolist() == [4, 4]
    assert evaluation.confusion.trace() == round(8 * evaluation.accuracy)
    # By hand: one image at a time, with pillow and the checkpoint alone.
    from PIL import Image

    model, info = load_model(result.path / "last.pt")
    mean, std = (torch.tensor(info["input"][name])[:, None, None] for name in ("mean", "std"))
    expected = torch.zeros(2, 2, dtype=torch.long)
    for label, name in enumerate(info["classes"]):
        for file in sorted((data / "val" / name).iterdir()):
            picture = Image.open(file).resize((9, 11), Image.Resampling.BILINEAR).crop((0, 2, 8, 10))
            pixels = (
                torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
                .view(8, 8, 3)
                .permute(2, 0, 1)
            )
            expected[label, model(((pixels / 255 - mean) / std)[None]).argmax()] += 1
    assert evaluation.confusion.tolist() == expected.tolist()

    assert evaluate_command.main([str(result.path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "as training recorded" in out
    assert confusion_table(evaluation.confusion, ["left", "top"]) in out
    assert (result.path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_confusions_as_text():
    confusion = torch.tensor([[5, 0, 1], [0, 0, 0], [3, 0, 7]])
    lines = confusion_table(confusion, ["a", "b", "c"]).splitlines()
    assert [line.split() for line in lines] == [
        ["a", "b", "c", "found"],
        ["a", "5", ".", "1", "83.3%"],
        ["b", ".", ".", ".", "-"],
        ["c", "3", ".", "7", "70.0%"],
    ]
    assert worst_confusions(confusion, ["a", "b", "c"]).split("\n")[1:] == [
        "      3  c taken for a",
        "      1  a taken for c",
    ]
    assert "No class" in worst_confusions(torch.eye(3).long(), ["a", "b", "c"])


def test_other_classes_are_refused(data, run):
    for part in ("train", "val"):
        (data / part / "top").rename(data / part / "bottom")
    with pytest.raises(DataError, match=r"bottom, left.*trained on the 2 classes left, top"):
        evaluate(run, progress=False)


# --- Interruptions ----------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_as_if_nothing_had_happened(data, tmp_path):
    whole = train(options(data, tmp_path / "whole", **training_processes.INTERRUPTED), progress=False)
    command = [sys.executable, str(HERE / "training_processes.py"), "kill", str(tmp_path / "run"), str(data)]
    for when, finished in (("step", 1), ("checkpoint", 1)):
        result = subprocess.run(
            [*command, when], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
        )
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert read_checkpoint(tmp_path / "run" / "last.pt")["epoch"] == finished
    resumed = train(resume=tmp_path / "run", progress=False)
    assert curve(resumed.history) == curve(whole.history)
    ours, theirs = (read_checkpoint(path / "last.pt") for path in (tmp_path / "run", tmp_path / "whole"))
    for name in ("state_dict", "ema_state_dict", "optimizer", "scheduler"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)
    (ours,), (theirs,) = ours["rng"], theirs["rng"]
    assert torch.equal(ours.pop("torch"), theirs.pop("torch"))
    assert ours == theirs


def test_a_run_without_a_checkpoint_begins_again(data, tmp_path, monkeypatch, capsys):
    whole = train(options(data, tmp_path / "whole", epochs=1), progress=False)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("involution.training.step.Stepper.__call__", interrupt)
        arguments = [
            f"--{name.replace('_', '-')}={json.dumps(value) if isinstance(value, dict) else value}"
            for name, value in options(data, tmp_path / "runs" / "first", epochs=1).items()
            if name != "plot"
        ]
        assert train_command.main([*arguments, "--no-plot"]) == 130
    assert "--resume" in capsys.readouterr().err
    assert train_command.main(["--resume"]) == 0
    history = read_checkpoint(tmp_path / "runs" / "first" / "last.pt")["metrics"]["history"]
    assert curve(history) == curve(whole.history)


def test_what_may_change_when_a_run_goes_on(data, run, tmp_path):
    with pytest.raises(ConfigError, match="'lr' cannot change"):
        train({"lr": 0.1}, resume=run, progress=False)
    with pytest.raises(ConfigError, match="not the folder of a run"):
        train(resume=tmp_path, progress=False)
    moved = data.rename(tmp_path / "moved")
    assert len(train({"data_path": str(moved), "workers": 1}, resume=run, progress=False).history) == 3


def test_other_data_is_refused_when_a_run_goes_on(run, data):
    for part in ("train", "val"):
        (data / part / "top").rename(data / part / "bottom")
    with pytest.raises(DataError, match="not what the run began with"):
        train(resume=run, progress=False)


def test_a_corrupt_checkpoint_stops_a_run(run):
    content = (run / "last.pt").read_bytes()
    (run / "last.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"last\.pt.*damaged"):
        train(resume=run, progress=False)
    with pytest.raises(SystemExit) as error:
        evaluate_command.main([str(run), "--no-plot"])
    assert "damaged" in str(error.value.code)


# --- Several processes ------------------------------------------------------------------------------------


def test_two_processes_train_like_one(data, tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "create_model", state_module.create_model)  # share changes it
    found = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        if count == 1:
            training_processes.share(folder, data)
        else:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            script = [str(HERE / "training_processes.py"), "share", str(folder), str(data)]
            command = [*launcher, *script]
            result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
            assert result.returncode == 0, result.stderr
        found.append(torch.load(folder / f"{count}.pt", weights_only=True))
    one, two = found
    torch.testing.assert_close(two["gradients"], one["gradients"], rtol=1e-12, atol=1e-14)
    assert [row.keys() for row in one["curve"]] == [row.keys() for row in two["curve"]]
    for ours, theirs in zip(two["curve"], one["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    with pytest.raises(ConfigError, match=r"trained by 2 process\(es\)"):
        train(resume=tmp_path / "2" / "run", progress=False)


# --- What goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_bad_image_stops_or_is_skipped(data, tmp_path, workers, part):
    bad = data / part / "top" / "01.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(BadImageError, match=r"top/01\.png cannot be read.*--on-bad-image skip"):
        train(options(data, tmp_path / "stops", workers=workers), progress=False)
    settings = options(
        data, tmp_path / "skips", workers=workers, on_bad_image="skip", batch_size=16, epochs=1
    )
    with pytest.warns(UserWarning, match=r"1 image\(s\) were skipped in epoch 1.*top/01\.png"):
        result = train(settings, progress=False)
    assert result.history[0]["skipped_images"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = evaluate(result.path, progress=False)
    assert list(evaluation.skipped) == ([str(bad)] if part == "val" else [])
    assert evaluation.confusion.sum() == (7 if part == "val" else 8)
    assert evaluation.accuracy == result.accuracy


@pytest.mark.parametrize(
    ("part", "message"), [("train", "100 images in a row"), ("val", "No test image can be read")]
)
def test_nothing_but_bad_images(data, tmp_path, part, message):
    for file in data.glob(f"{part}/*/*"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(options(data, tmp_path / "run", on_bad_image="skip"), progress=False)


def test_a_diverging_run_stops_with_a_sentence(data, tmp_path):
    settings = options(data, tmp_path / "run", optimizer="sgd", lr=1e30, clip_grad_norm=None, warmup_epochs=0)
    with pytest.raises(NonFiniteError, match=r"not finite at epoch 1, step"):
        train(settings, progress=False)
