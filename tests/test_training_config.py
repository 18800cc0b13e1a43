"""Options of a run: files, the command line, and everything that is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from involution import train as command
from involution.training import Config, ConfigError, from_mapping, read, shipped
from involution.training.state import State


def test_the_recipe_of_the_paper():
    # d-li14/involution, cls/configs: imagenet_bs2048_coslr_130e.py (3130 steps of warm-up from a quarter),
    # rednet50.py, and the data of MMClassification's imagenet_bs32.py
    assert "imagenet" in shipped()
    with pytest.raises(ConfigError, match="data_path"):
        read("imagenet")
    config = from_mapping({**command.read_options("imagenet"), "data_path": "imagenet"})
    expected = {
        "data": "folder",
        "model": "rednet50",
        "image_size": 224,
        "epochs": 130,
        "batch_size": 2048,
        "optimizer": "sgd",
        "lr": 0.8,
        "min_lr": 0.0,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 1e-4,
        "decay_all": True,
        "label_smoothing": 0.1,
        "clip_grad_norm": None,
        "warmup_factor": 0.25,
        "flip": None,
        "crop_scale": 0.08,
        "precision": "float32",
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert (
        round(config.warmup_epochs * (1281167 / 2048)) == 3128
    )  # 3130 in the recipe, which counts whole steps


def test_defaults_survive_json():
    config = Config()
    assert from_mapping(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.1}, "unknown option 'learning_rate'"),
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"epochs": 0}, "'epochs' must be at least 1, but is 0"),
        ({"epochs": 1.5}, "'epochs' must be of type int, but is 1.5"),
        ({"epochs": True}, "'epochs' must be of type int"),
        ({"lr": "0.1"}, "'lr' must be of type float"),
        ({"lr": 0}, "'lr' must be more than 0"),
        ({"lr": float("nan")}, "'lr' must be finite"),
        ({"lr": None}, "'lr' must be of type float"),
        ({"label_smoothing": 1}, "at least 0 and less than 1"),
        ({"crop_scale": 1.5, "data": "folder", "data_path": "x"}, "more than 0 and at most 1"),
        ({"optimizer": "adam"}, "one of sgd, adamw, but is 'adam'"),
        ({"mean": "0.5"}, "'mean' must be a list of numbers or null"),
        ({"mean": [0.5, "a"]}, "'mean' must be a list of numbers"),
        ({"std": [0.0]}, "'std' must hold positive numbers"),
        ({"model_arguments": "x"}, "must be a JSON object"),
        ({"model_arguments": {"num_classes": 3}}, "The data decides 'num_classes'"),
        ({"clip_grad_norm": 0}, "more than 0"),
        ({"data_path": "x"}, "ship inside scikit-learn"),
        ({"flip": True}, "mirrored ones are no digits"),
        ({"data": "cifar10"}, "needs the option 'data_path'"),
        ({"data": "cifar10", "data_path": "x", "image_size": 64}, "'image_size' is for folders"),
        ({"crop_scale": 0.5}, "'crop_scale' is for folders"),
        ({"data": "folder", "data_path": "x", "crop_padding": 2}, "'crop_padding' is for digits"),
        ({"data": "folder", "data_path": "x", "channels": 4}, "must be 1 or 3"),
        ({"min_lr": 1.0}, "'min_lr' (1.0) must not be more"),
        ({"warmup_epochs": 31, "epochs": 30}, "'warmup_epochs' (31) must not be more"),
        ({"optimizer": "sgd", "momentum": 0}, "'nesterov' needs a 'momentum'"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ConfigError) as error:
        from_mapping(options)
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("[1]", "JSON object"), ("{", "not valid JSON")])
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_a_missing_file_names_what_ships(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*imagenet"):
        read(tmp_path / "nowhere.json")


def test_the_command_line_overrides_the_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"epochs": 7, "lr": 0.5, "plot": False}))
    seen = []
    monkeypatch.setattr(command, "train", lambda config, **_: seen.append(config))
    arguments = [
        "--config",
        str(path),
        "--lr",
        "0.25",
        "--clip-grad-norm",
        "none",
        "--mean",
        "0.5",
        "--compile",
    ]
    assert command.main([*arguments, "--model-arguments", '{"dropout": 0.1}']) == 0
    changed = {"epochs": 7, "lr": 0.25, "plot": False, "clip_grad_norm": None, "mean": [0.5], "compile": True}
    assert seen == [Config(**changed, model_arguments={"dropout": 0.1})]


def test_every_option_is_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    help = capsys.readouterr().out
    for entry in dataclasses.fields(Config):
        assert "--" + entry.name.replace("_", "-") in help


def test_a_mistake_ends_the_command_with_a_sentence(capsys):
    with pytest.raises(SystemExit) as error:
        command.main(["--epochs", "0"])
    assert error.value.code == "error: The option 'epochs' must be at least 1, but is 0."


def test_an_unknown_model_is_named(monkeypatch):
    class Data:
        classes, channels = ("a", "b"), 1

    class Group:
        device, rank = __import__("torch").device("cpu"), 0

    with pytest.raises(ConfigError, match="'resnet' cannot be built"):
        State(Config(model="resnet"), Data, 1, Group)
