"""Official checkpoints: names both ways, the same function, and damaged files that change nothing."""

from __future__ import annotations

import copy
import hashlib
import io
from pathlib import Path

import official_rednet
import pytest
import torch
from official_rednet import OfficialClassifier, OfficialRedNet
from torch import Tensor, nn

from involution.models import (
    CheckpointError,
    RedNet,
    create_model,
    from_checkpoint,
    from_official,
    load_checkpoint,
    save_official,
    to_official,
)

BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)
SMALL = {"blocks": (1, 2), "widths": (32, 48)}  # blocks and widths of the networks that are run


def small(features_only: bool = False, stem_kernel_size: int = 3, **arguments) -> RedNet:
    torch.manual_seed(1)
    settings = {"num_classes": 10, **arguments}
    model = RedNet(
        SMALL["blocks"],
        widths=SMALL["widths"],
        strides=(1, 2),
        stem_kernel_size=stem_kernel_size,
        features_only=features_only,
        **settings,
    )
    return official_rednet.randomise(model)


def official(stem_size: int = 3, head: bool = True, classes: int = 10) -> nn.Module:
    torch.manual_seed(2)
    if head:
        model = OfficialClassifier(**SMALL, stem_size=stem_size, classes=classes)
    else:
        model = OfficialRedNet(**SMALL, stem_size=stem_size)
    return official_rednet.randomise(model)


def published(model: nn.Module, path: Path) -> Path:
    """A file as the official repository writes it."""
    torch.save({"meta": {"epoch": 130, "mmcls_version": "0.11"}, "state_dict": model.state_dict()}, path)
    return path


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[int]]:
    return copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]


def assert_unchanged(model: nn.Module, before: tuple[dict[str, Tensor], list[int]]) -> None:
    state, identities = before
    now = model.state_dict()
    assert list(now) == list(state)
    assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
    assert [id(p) for p in model.parameters()] == identities


# ---- names ----


def test_the_official_list_of_names():
    """The plain network has the very names and shapes of a published RedNet-50 backbone, in their order."""
    with torch.device("meta"):
        model = OfficialRedNet(BLOCKS[50], WIDTHS, 3)
    lines = [f"{name} {','.join(map(str, t.shape))}" for name, t in model.state_dict().items()]
    assert len(lines) == 449
    assert lines[12] == "stem.1.conv2.conv.weight 18,8,1,1"
    assert lines[218] == "layer3.0.conv2.conv1.conv.weight 64,256,1,1"
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "34e8a6078e2f8083414c92649fcc4f2e4d587eb5bc0496667b6cede35184e085"


@pytest.mark.parametrize("stem_size", [3, 7])
@pytest.mark.parametrize("depth", BLOCKS)
def test_names_convert_both_ways(depth, stem_size):
    with torch.device("meta"):
        classifier = OfficialClassifier(BLOCKS[depth], WIDTHS, stem_size)
        ours = create_model(f"rednet{depth}", stem_kernel_size=stem_size)
        maps = create_model(f"rednet{depth}", stem_kernel_size=stem_size, features_only=True)
    for theirs, model in ((classifier, ours), (classifier.backbone, maps)):
        state = theirs.state_dict()
        shapes = {name: tensor.shape for name, tensor in from_official(state).items()}
        assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}
        back = to_official(model.state_dict())
        assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in state.items()}


@pytest.mark.parametrize(
    "name",
    [
        "layer0.0.conv1.weight",
        "layer1.0.conv4.weight",
        "stem.3.weight",
        "fc.weight",
        "conv1.weight",
        "stem.weight",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="not names of the official RedNet: " + name):
        from_official({name: torch.zeros(1)})


@pytest.mark.parametrize(
    "name", ["stages.0.0.conv9.weight", "stem.pool.weight", "conv1.weight", "norm1.bias"]
)
def test_other_names_have_no_official_one(name):
    with pytest.raises(ValueError, match="not names of a RedNet: " + name):
        to_official({name: torch.zeros(1)})


# ---- the function ----


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stem_size", [3, 7])
def test_the_function_is_the_official_one(tmp_path, stem_size, training):
    theirs, ours = official(stem_size), small(stem_kernel_size=stem_size)
    load_checkpoint(ours, published(theirs, tmp_path / "classifier.pth"))
    x = torch.randn(3, 3, 64, 96)
    theirs.train(training), ours.train(training)
    exact = copy.deepcopy(theirs).double()(x.double())
    plain, output = theirs(x), ours(x)
    allowed = (plain.double() - exact).abs().max()
    epsilon = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (output.double() - exact).abs().max() <= 2 * allowed + epsilon
    assert (output.double() - exact).abs().max() <= 1000 * epsilon
    # The running statistics follow alike.
    state = from_official(theirs.state_dict())
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)


def test_gradients_are_the_official_ones(tmp_path):
    theirs, ours = official().double(), small().double()
    load_checkpoint(ours, published(theirs, tmp_path / "classifier.pth"))
    x = torch.randn(3, 3, 32, 64, dtype=torch.float64)
    for model in (theirs, ours):
        model(x).square().sum().backward()
    gradients = from_official({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-8, atol=1e-9)


# ---- files ----


def test_forms_of_files(tmp_path):
    theirs, path = official(), tmp_path / "file.pth"
    state = theirs.state_dict()
    forms = [
        state,
        {"state_dict": state, "meta": {}},
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        {"model": from_official(state), "epoch": 3},  # our own names
    ]
    for form in forms:
        torch.save(form, path)
        model = small()
        report = load_checkpoint(model, path)
        assert report.loaded == len(model.state_dict()) and not report.left_out and not report.stem_changed
        assert all(
            torch.equal(a, b)
            for a, b in zip(to_official(model.state_dict()).values(), state.values(), strict=True)
        )


def test_a_classifier_goes_into_a_network_for_features(tmp_path, caplog):
    theirs, model = official(), small(features_only=True).eval()
    report = load_checkpoint(model, published(theirs, tmp_path / "classifier.pth"))
    assert report.left_out == ("head.weight", "head.bias")
    assert "Left out: head.weight, head.bias." in str(report)
    assert str(report) in caplog.text
    x = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(model(x), theirs.eval().backbone(x), rtol=1e-4, atol=1e-4)


def test_a_backbone_without_prefix_and_fewer_stages(tmp_path):
    theirs = official(head=False)
    path = published(theirs, tmp_path / "backbone.pth")
    whole = small(features_only=True)
    assert load_checkpoint(whole, path).left_out == ()
    shallow = small(features_only=True, out_indices=(0,))
    report = load_checkpoint(shallow, path)
    assert len(shallow.stages) == 1
    assert report.left_out and all(name.startswith("stages.1.") for name in report.left_out)
    before = snapshot(model := small())
    with pytest.raises(CheckpointError, match=r"it lacks head\.weight, head\.bias"):
        load_checkpoint(model, path)
    assert_unchanged(model, before)
    load_checkpoint(model, path, head=False)
    assert torch.equal(model.head.weight, before[0]["head.weight"])
    assert torch.equal(model.stem.conv1.weight, theirs.stem[0].conv.weight)


def test_a_detector_s_other_parts_are_left_out(tmp_path):
    theirs = nn.Module()
    theirs.backbone = official(stem_size=7, head=False)
    theirs.neck = nn.Conv2d(4, 4, 1)
    model = small(features_only=True, stem_kernel_size=7)
    report = load_checkpoint(model, published(theirs, tmp_path / "detector.pth"))
    assert report.left_out == ("neck.weight", "neck.bias")


@pytest.mark.parametrize("stem_size", [3, 7])
def test_the_stem_takes_the_file_s_size(tmp_path, stem_size, caplog):
    theirs = official(stem_size)
    path = published(theirs, tmp_path / "classifier.pth")
    model = small(stem_kernel_size=10 - stem_size).eval()
    report = load_checkpoint(model, path)
    assert report.stem_changed and report.stem_kernel_size == stem_size
    assert f"replaced by one of {stem_size}x{stem_size}" in caplog.text
    assert not model.stem.involution.training
    x = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(model(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_what_is_frozen_stays_so_when_the_stem_changes(tmp_path):
    model = small(stem_kernel_size=7)
    model.freeze_norms()
    load_checkpoint(model, published(official(), tmp_path / "classifier.pth"))
    layer = model.stem.involution
    assert layer.kernel_size == (3, 3) and layer.training and not layer.norm.training
    assert [p.requires_grad for p in layer.parameters()] == [True, False, False, True, True]


def test_another_number_of_classes(tmp_path):
    path = published(official(classes=7), tmp_path / "classifier.pth")
    before = snapshot(model := small())
    with pytest.raises(
        CheckpointError, match=r"head.bias has shape \(7,\) and the network's has \(10,\).*head=False"
    ):
        load_checkpoint(model, path)
    assert_unchanged(model, before)
    assert load_checkpoint(model, path, head=False).left_out == ("head.weight", "head.bias")


def test_building_from_a_file(tmp_path):
    theirs = official(stem_size=7, classes=7)
    path = published(theirs, tmp_path / "classifier.pth")
    x = torch.randn(1, 3, 32, 64)
    model = from_checkpoint(path).eval()
    torch.testing.assert_close(model(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
    maps = from_checkpoint(path, features_only=True).eval()
    torch.testing.assert_close(maps(x), theirs.backbone(x), rtol=1e-4, atol=1e-4)
    torch.save(small().state_dict(), path)
    with pytest.raises(CheckpointError, match="our names"):
        from_checkpoint(path)


@pytest.mark.parametrize("features_only", [False, True])
def test_written_files_are_official(tmp_path, features_only):
    model, path = small(features_only), tmp_path / "ours.pth"
    save_official(model, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.pth"]
    theirs = official(head=not features_only)
    theirs.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    again = small(features_only)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    load_checkpoint(again, path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_another_dtype_and_training_mode_stay(tmp_path):
    model = small().to(torch.bfloat16).eval()
    load_checkpoint(model, published(official(), tmp_path / "classifier.pth"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


class Anything:
    """What a pickle may hold and a checkpoint may not."""


def damaged_files() -> dict[str, tuple[bytes, str]]:
    """Bytes and the sentence that they get."""

    def saved(document: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(document, buffer)
        return buffer.getvalue()

    def changed(**tensors: Tensor | None) -> bytes:
        state = official().state_dict()
        for name, tensor in tensors.items():
            state.pop(name) if tensor is None else state.update({name: tensor})
        return saved({"state_dict": state})

    whole = saved({"state_dict": official().state_dict()})
    span = "backbone.stem.1.conv2.conv.weight"
    deep = OfficialClassifier((1, 3), SMALL["widths"], classes=10).state_dict()
    conv1 = official().state_dict()["backbone.stem.0.conv.weight"]
    return {
        "empty": (b"", "cannot be read"),
        "text": (b"not a checkpoint\n" * 100, "cannot be read"),
        "noise": (bytes(range(256)) * 50, "cannot be read"),
        "truncated": (whole[: len(whole) // 2], "cannot be read"),
        "without its end": (whole[:-100], "cannot be read"),
        "code": (saved({"state_dict": Anything()}), "holds more than tensors"),
        "a tensor": (saved(torch.zeros(3)), "holds no names with tensors"),
        "a list": (saved([1, 2]), "holds no names with tensors"),
        "no tensors": (saved({"state_dict": {"a": 1}}), "under a is no tensor"),
        "nothing": (saved({"state_dict": {}}), "holds no names with tensors"),
        "another network": (
            saved(nn.Linear(3, 3).state_dict()),
            "not a checkpoint of a RedNet: it holds weight, bias",
        ),
        "another depth": (saved(deep), r"its stages have \[1, 3\] blocks and the network's \[1, 2\]"),
        "missing": (changed(**{"backbone.layer1.0.bn2.bias": None}), "it lacks stages.0.0.norm2.bias"),
        "unknown": (changed(**{"backbone.layer1.0.bn4.bias": torch.zeros(1)}), "backbone.layer1.0.bn4.bias"),
        "too many": (
            changed(**{"backbone.layer1.0.downsample.0.bias": torch.zeros(64)}),
            "the network has no stages.0.0.shortcut.conv.bias",
        ),
        "a wrong shape": (changed(**{"backbone.layer2.1.bn3.weight": torch.ones(3)}), r"has shape \(3,\)"),
        "a wrong stem": (
            changed(**{span: torch.zeros(19, 8, 1, 1)}),
            "does not tell the size of the stem's involution",
        ),
        "half a stem": (changed(**{span: torch.zeros(98, 8, 1, 1)}), r"span.bias has shape \(18,\)"),
        "no stem": (changed(**{span: None}), "span.weight is missing"),
        "integers": (changed(**{"backbone.stem.0.conv.weight": conv1.long()}), "holds torch.int64"),
        "sparse": (changed(**{"backbone.stem.0.conv.weight": conv1.to_sparse()}), "torch.sparse_coo"),
    }


DAMAGED = damaged_files()


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_explained_and_changes_nothing(tmp_path, name):
    content, message = DAMAGED[name]
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    model = small()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(model, path)
    assert "damaged.pth" in str(caught.value)
    assert_unchanged(model, before)


def test_a_missing_file_and_a_network_without_memory(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(small(), tmp_path / "missing.pth")
    with pytest.raises(TypeError, match="as a RedNet or a segmenter, but it is a Sequential"):
        load_checkpoint(nn.Sequential(small()), tmp_path / "missing.pth")
    model = small(device="meta")
    with pytest.raises(CheckpointError, match="meta device"):
        load_checkpoint(model, published(official(), tmp_path / "classifier.pth"))
    load_checkpoint(model.to_empty(device="cpu"), tmp_path / "classifier.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ours.pth"
    save_official(small(), path)
    old = path.read_bytes()

    def fail(document: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_official(small(), path)
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1
