"""Segmenters: published sizes, the official function and names, training, and files to deploy."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import official_rednet
import pytest
import torch
import torch.nn.functional as F
from elementwise_costs import ElementwiseCosts
from exported_files import through_a_file
from official_rednet import OfficialClassifier
from official_segmenters import OfficialSegmenter
from test_pretrained import assert_unchanged, published, snapshot
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from involution import Involution2d, segmentation
from involution.export import Deployable
from involution.models import (
    CheckpointError,
    FeaturePyramid,
    RedNet,
    from_checkpoint,
    fuse,
    load_checkpoint,
    rednet_tiny,
    save_official,
)
from involution.segmentation import Segmenter, semantic_fpn, semantic_fpn_rednet_tiny, upernet
from involution.segmentation.heads import SemanticFPNHead, WindowAverages

KINDS = ("involution", "convolution", "upernet")  # a neck's, of Semantic FPN, or UPerNet
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
# kind: parameters with the stem's 7x7 involution, and GFLOPs with 3x3: as counted by mmcv, and as published
PUBLISHED = {
    "involution": (16_372_737, 205.124, 205.2),
    "convolution": (18_463_169, 293.905, 293.9),
    "upernet": (56_380_500, 1825.972, 1825.6),
}


def of_depth(kind: str, depth: int, **arguments: Any) -> Segmenter:
    if kind == "upernet":
        return getattr(segmentation, f"upernet_rednet{depth}")(**arguments)
    return getattr(segmentation, f"semantic_fpn_rednet{depth}")(neck=kind, **arguments)


def small(kind: str, stem_kernel_size: int = 7, classes: int = 5, stages: int = 4, **arguments: Any) -> Any:
    torch.manual_seed(1)
    widths, blocks = (32, 16, 32, 16)[:stages], (1, 2, 1, 1)[:stages]
    network = RedNet(blocks, widths=widths, stem_kernel_size=stem_kernel_size, features_only=True)
    settings = {"channels": 16, "dropout": 0.0, **arguments}
    if kind == "upernet":
        return upernet(network, classes, **{"auxiliary_channels": 16, **settings})
    return semantic_fpn(network, classes, neck=kind, neck_channels=32, **settings)


def official(kind: str, stem_size: int = 7, classes: int = 5) -> OfficialSegmenter:
    torch.manual_seed(2)
    model = OfficialSegmenter(kind, (1, 2, 1, 1), (32, 16, 32, 16), stem_size, 16, classes)
    return settle(model)


@torch.no_grad()
def settle(model: nn.Module) -> Any:
    """Norms that are neither one nor zero, with the statistics of their maps, so that no map grows beyond measure."""
    official_rednet.randomise(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(torch.randn(2, 3, 64, 96))
    for norm in norms:
        norm.momentum = 0.1
    return model


# ---- sizes and costs ----


@EACH_KIND
@pytest.mark.parametrize("depth", [26, 38, 50, 101, 152])
def test_parameters(kind, depth):
    """Those published with RedNet-50; the other depths differ by their backbones alone. All have official names."""
    model = of_depth(kind, depth, device="meta")
    backbones = {26: 9_233_166, 38: 12_386_986, 50: 15_540_806, 101: 25_652_950, 152: 33_984_582}
    expected = PUBLISHED[kind][0] + backbones[depth] - backbones[50]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    there = Segmenter.official_names.to_official(model.state_dict())
    assert all(name.startswith(("backbone.", "neck.", "decode_head.", "auxiliary_head.")) for name in there)
    assert list(Segmenter.official_names.from_official(there)) == list(model.state_dict())


@EACH_KIND
def test_multiply_adds(kind):
    """At 1024 x 2048, to 0.05 G of mmcv's way to count, which gives the published figures to 0.04 %."""
    _, expected, stated = PUBLISHED[kind]
    model = of_depth(kind, 50, stem_kernel_size=3, device="meta").eval()
    image = torch.empty(1, 3, 1024, 2048, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter, ElementwiseCosts() as others:
        model(image)
    flops = counter.get_flop_counts()["Global"]  # without products of matrices, which are poolings there
    products = flops[torch.ops.aten.convolution] + flops[torch.ops.involution.involution]
    pools = sum(isinstance(module, WindowAverages) for module in model.modules())
    total = products / 2 + others.count + pools * 2048 * (1024 // 32) * (2048 // 32)
    assert total / 1e9 == pytest.approx(expected, abs=0.05)
    assert total / 1e9 == pytest.approx(stated, rel=4e-4)


# ---- the function and the names ----


@EACH_KIND
@pytest.mark.parametrize("stem_size", [3, 7])
@pytest.mark.parametrize("training", [True, False])
def test_the_function_is_the_official_one(tmp_path, kind, stem_size, training):
    """In training with the norms' statistics of the batch and the auxiliary scores; heads on odd maps too."""
    theirs, ours = official(kind, stem_size), small(kind)
    report = load_checkpoint(ours, published(theirs, tmp_path / "segmenter.pth"))
    assert report.official and report.loaded == len(theirs.state_dict()) and not report.left_out
    assert report.stem_changed == (stem_size == 3)
    theirs.double().train(training), ours.double().train(training)
    x = torch.randn(2, 3, 96, 160, dtype=torch.float64)  # the official operator wants multiples of 32
    expected, scores = theirs(x), ours(x)
    assert list(scores) == (["out", "aux"] if kind == "upernet" and training else ["out"])
    torch.testing.assert_close(list(scores.values()), expected[: len(scores)], rtol=1e-9, atol=1e-9)
    widths, sizes = ours.backbone.feature_channels, ((19, 26), (10, 13), (5, 7), (3, 4))
    maps = [torch.randn(2, width, *size).double() for width, size in zip(widths, sizes, strict=True)]
    output = ours.head(maps if ours.neck is None else ours.neck(maps))
    torch.testing.assert_close(output, theirs.score(maps)[0], rtol=1e-9, atol=1e-9)


@EACH_KIND
def test_names_convert_both_ways(tmp_path, kind):
    """Ours to a file that the official network takes strictly, from which the same network is built again."""
    model, path = settle(small(kind, 3)), tmp_path / "ours.pth"
    save_official(model, path)
    theirs = official(kind, 3)
    theirs.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)
    again = from_checkpoint(path)
    state = model.state_dict()
    assert list(again.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    torch.save({"state_dict": state}, path)  # with our own names
    assert not load_checkpoint(again, path).official
    with pytest.raises(CheckpointError, match="our names"):
        from_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decode_head.conv_seg.bias", r"it lacks head\.classifier\.bias"),
        ("neck.lateral_convs.1.conv.weight", r"it lacks neck\.lateral\.1\.weight"),
        ("neck.lateral_convs.4.conv.weight", r"the network has no neck\.lateral\.4\.weight"),
        ("decode_head.scale_heads.0.0.gn.weight", r"not names of the official segmenter: decode_head\.scale"),
        ("bbox_head.fc_cls.weight", r"not names of the official segmenter: bbox_head\.fc_cls\.weight"),
    ],
)
def test_all_or_nothing(tmp_path, name, message):
    """A name that is taken out of a whole file, or put into it."""
    state = official("involution").state_dict()
    if state.pop(name, None) is None:
        state[name] = torch.ones(1)
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    before = snapshot(model := small("involution"))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, tmp_path / "other.pth")
    assert_unchanged(model, before)


def test_what_may_be_left_out(tmp_path):
    """Classifiers for other classes, the auxiliary head, and all but the backbone."""
    theirs = official("upernet", classes=7)
    path = published(theirs, tmp_path / "upernet.pth")
    before = snapshot(model := small("upernet"))
    with pytest.raises(CheckpointError, match="with head=False the head is left as it is"):
        load_checkpoint(model, path)
    assert_unchanged(model, before)
    report = load_checkpoint(model, path, head=False)
    ends = [f"{part}.classifier.{name}" for part in ("head", "auxiliary") for name in ("weight", "bias")]
    assert list(report.left_out) == ends
    assert all(torch.equal(model.state_dict()[name], before[0][name]) for name in ends)
    assert torch.equal(model.head.fusion.conv.weight, theirs.decode_head.fpn_bottleneck.conv.weight)
    report = load_checkpoint(small("upernet", classes=7, auxiliary_channels=0), path)
    assert report.left_out and all(name.startswith("auxiliary.") for name in report.left_out)
    backbone = small("upernet").backbone
    report = load_checkpoint(backbone, path)
    assert report.left_out and all(name.startswith(("decode_", "auxiliary_")) for name in report.left_out)
    assert torch.equal(backbone.stem.conv1.weight, theirs.backbone.stem[0].conv.weight)
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "bottleneck" not in name}
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"a whole segmenter: 'neck\.lateral\.0\.weight' is missing"):
        from_checkpoint(path)


def test_weights_of_a_classifier_for_the_backbone(tmp_path):
    """Whose stem has a 3x3 involution, in the place of the 7x7 one."""
    theirs = settle(OfficialClassifier((1, 1), (32, 16)))
    path = published(theirs, tmp_path / "classifier.pth")
    arguments = {"blocks": (1, 1), "widths": (32, 16), "out_indices": (0, 1), "weights_backbone": path}
    model = semantic_fpn("rednet26", 5, **arguments).eval()
    assert model.backbone.stem.involution.kernel_size == (3, 3)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.backbone(x), theirs.eval().backbone(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(FileNotFoundError):
        upernet("rednet26", weights_backbone=tmp_path / "missing.pth")


# ---- building and training ----


@EACH_KIND
def test_a_step_of_training(kind):
    """The first loss is that of guessing, every parameter gets a gradient, and steps lower the loss."""
    model = small(kind, dropout=0.1)
    x = F.interpolate(torch.randn(2, 3, 4, 4), size=(64, 64))
    target = (x[:, 0] * 2 + 2).round().clamp(0, 4).long()
    target[:, :9] = 255
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(8):
        scores = model(x)
        loss = sum(F.cross_entropy(each, target, ignore_index=255) for each in scores.values())
        losses.append(loss.item() / len(scores))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(5), rel=0.1) and losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropout_is_of_channels_and_in_training_alone():
    model = small("involution", dropout=0.5)
    seen: list[Tensor] = []
    model.head.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 3, 64, 64)
    model(x)
    assert 0 < (seen[0] == 0).all((2, 3)).sum() < seen[0].shape[0] * seen[0].shape[1]
    model.eval()
    assert torch.equal(model(x)["out"], model(x)["out"])


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (31, 64), (65, 17)], ids=str)
@EACH_KIND
def test_any_size_and_an_empty_batch(kind, size):
    model = small(kind).eval()
    for batch in (0, 1, 3):
        assert model(torch.randn(batch, 3, *size))["out"].shape == (batch, 5, *size)


def test_strides_of_the_backbone():
    """With output_stride=8 the levels have strides 4, 8, 8 and 8, so that each is doubled once at most."""
    model = semantic_fpn("rednet26", 5, output_stride=8, widths=(16, 16, 16, 16), channels=8).eval()
    assert [len(scale) for scale in model.head.scales] == [1, 2, 2, 2]
    assert model(torch.randn(1, 3, 64, 96))["out"].shape == (1, 5, 64, 96)
    tiny = semantic_fpn_rednet_tiny(in_channels=1).eval()
    assert sum(parameter.numel() for parameter in tiny.parameters()) < 350_000
    assert tiny(torch.randn(1, 1, 33, 40))["out"].shape == (1, 11, 33, 40)


def test_wrong_arguments_are_explained():
    with pytest.raises(ValueError, match="features_only=True"):
        upernet(rednet_tiny())
    with pytest.raises(ValueError, match="drop_path cannot change it"):
        semantic_fpn(rednet_tiny(features_only=True), drop_path=0.1)
    with pytest.raises(ValueError, match=r"powers of two times the first, but they are \(4, 12\)"):
        SemanticFPNHead(16, (4, 12), 5)
    with pytest.raises(ValueError, match="num_classes must be"):
        semantic_fpn_rednet_tiny(0)


def test_an_involution_neck_keeps_the_size_of_numbers():
    """Without a norm behind them, which the paper's initialisation of involutions reckons with."""
    torch.manual_seed(0)
    output = FeaturePyramid((64,), 64, neck="involution").output[0]
    x = torch.randn(2, 64, 48, 48)
    with torch.no_grad():
        assert output(x).square().mean().sqrt().item() == pytest.approx(1, abs=0.15)
        assert Involution2d(64, 7)(x).square().mean().sqrt().item() > 1.7


@pytest.mark.parametrize("windows", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(8, 9), (1, 5), (12, 18), (2, 1), (7, 3)], ids=str)
def test_averages_are_adaptive_pooling(windows, size):
    x = torch.randn(2, 3, *size)
    for each in (x, x.contiguous(memory_format=torch.channels_last), x[:0]):
        expected = F.adaptive_avg_pool2d(each, windows)
        torch.testing.assert_close(WindowAverages(windows)(each), expected, rtol=1e-5, atol=1e-6)


@EACH_KIND
def test_fused_is_the_same_function(kind):
    model = settle(small(kind)).eval()
    fused = fuse(model)
    remaining = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all("epilogue" in name for name in remaining)  # behind involutions, whose part they become
    x = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(fused(x)["out"], model(x)["out"], rtol=1e-4, atol=1e-4)


# ---- deployment ----


@pytest.mark.parametrize("format", ["pt2", "onnx", "aoti"])
@pytest.mark.parametrize("kind", ["involution", "upernet"])
def test_files_give_the_scores_of_every_size(tmp_path: Path, kind: str, format: str) -> None:
    """Also odd ones, and those with more positions than the example; as near to float64 as the model itself.

    How near that is depends on the order of the sums, which a runtime of its own chooses: the yardstick is the farthest
    of three, those of oneDNN, of channels_last storage, and of torch's own convolutions.
    """
    # AOTInductor takes 20 seconds for two stages, and 50 for four.
    model = settle(small(kind, stages=2 if format == "aoti" else 4)).eval()
    precise = copy.deepcopy(model).double()
    run = through_a_file(model, torch.randn(1, 3, 64, 96), tmp_path, format)
    for size in ((1, 64, 96), (2, 97, 65), (1, 33, 200)):
        x = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            exact, results = precise(x.double())["out"], [model(x)["out"]]
            results.append(model(x.contiguous(memory_format=torch.channels_last))["out"])
            with torch.backends.mkldnn.flags(enabled=False):
                results.append(model(x)["out"])
        # These numbers grow with a high power of the image's, so float32 loses some digits in eager mode as well.
        allowed = max((result.double() - exact).abs().max() for result in results)
        largest = exact.abs().max()
        assert allowed <= 1e-3 * largest
        assert (run(x).double() - exact).abs().max() <= 2 * allowed + 1e-6 * largest


def test_deployable_segmenters_give_their_scores():
    model = small("upernet").eval()
    x, mean, std = torch.rand(1, 3, 40, 50), [0.5, 0.4, 0.3], [0.2, 0.3, 0.1]
    normalised = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(Deployable(model, mean, std)(x), model(normalised)["out"])
