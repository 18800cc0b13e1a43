"""The benchmark of RedNet-50 against ResNet-50: the networks, the record, and a quick run."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from benchmarks import network, resnet, results


def test_resnet50_is_the_published_one():
    with torch.device("meta"):
        model = resnet.ResNet()
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032 == resnet.PARAMETERS
    strides = [(block.conv1.stride, block.conv2.stride) for stage in model.layers for block in stage[:1]]
    assert strides == [((1, 1), (1, 1)), *[((1, 1), (2, 2))] * 3]
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_resnet50_is_torchvision_s(torchvision):
    torch.manual_seed(0)
    theirs, ours = torchvision.models.resnet50().eval(), resnet.ResNet().eval()
    names = {
        name: re.sub(r"^layer(\d)", lambda m: f"layers.{int(m[1]) - 1}", name) for name in theirs.state_dict()
    }
    ours.load_state_dict({names[name]: tensor for name, tensor in theirs.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_folding_resnet_leaves_no_norm():
    torch.manual_seed(0)
    model = resnet.ResNet((1, 2))
    model(torch.randn(4, 3, 32, 32))
    folded = resnet.fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=1e-3, atol=1e-4)


def test_a_quick_run(tmp_path, capsys):
    path = tmp_path / "network.csv"
    assert network.main(["--quick", "--device", "cpu", "--size", "32", "--output", str(path)]) == 0
    document = results.load(path, "network")
    rows = document["results"]
    assert [row["mode"] for row in rows] == ["inference", "fused", "training"]
    for row in rows:
        assert row["launch"] == "eager" and "peak_bytes" not in row["rednet50"]
        assert row["ratio"] == pytest.approx(row["rednet50"]["ms"] / row["resnet50"]["ms"])
    printed = capsys.readouterr().out
    assert all(network.describe(row) in printed for row in rows)
    assert document["environment"]["torch"] == str(torch.__version__)
    assert [p.name for p in tmp_path.iterdir()] == ["network.csv"]


def test_the_pyramids_are_the_published_ones(torchvision):
    """Those of Faster R-CNN: 29.65 M parameters, of which the heads of torchvision for 81 classes have the rest."""
    heads = torchvision.models.detection.faster_rcnn
    rpn = heads.RPNHead(256, 3)
    box = nn.ModuleList([heads.TwoMLPHead(256 * 7 * 7, 1024), heads.FastRCNNPredictor(1024, 81)])
    counts = [sum(p.numel() for p in module.parameters()) for module in (network.rednet50_fpn(), rpn, box)]
    assert sum(counts) == 29_651_218 and counts[0] == network.FPN_PARAMETERS["rednet50"]
    theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    assert sum(p.numel() for p in theirs.parameters()) == resnet.FPN_PARAMETERS


def test_a_quick_run_of_detection(tmp_path, capsys):
    path = tmp_path / "detection.csv"
    arguments = ["--quick", "--detection", "--device", "cpu", "--size", "32", "64", "--output", str(path)]
    assert network.main(arguments) == 0
    document = results.load(path, "detection")
    rows = document["results"]
    assert [row["mode"] for row in rows] == ["inference", "fused", "training"]
    assert all(row["size"] == [32, 64] for row in rows)
    printed = capsys.readouterr().out
    assert all(network.describe(row) in printed for row in rows)


def test_images_have_two_sizes(capsys):
    assert network.parse(["--device", "cpu", "--detection"]).size == [480, 640]
    assert network.parse(["--device", "cpu"]).size == network.parse(["--size", "224"]).size == [224, 224]
    with pytest.raises(SystemExit):
        network.parse(["--size", "1", "2", "3"])
    assert "--size takes height and width" in capsys.readouterr().err


def test_graphs_are_of_a_gpu(capsys):
    with pytest.raises(SystemExit):
        network.main(["--device", "cpu", "--launches", "graph"])
    assert "--launches graph needs a GPU" in capsys.readouterr().err


def test_memory_is_described():
    times = {"ms": 2.0, "fastest_ms": 1.9, "peak_bytes": 3 << 20}
    row = {"mode": "training", "layout": "channels_last", "launch": "graph", "batch": 64, "ratio": 1.0}
    row |= {"fastest_ratio": 1.0, "rednet50": times, "resnet50": {**times, "peak_bytes": 5 << 20}}
    assert network.describe(row).endswith("3 / 5 MiB")


def test_another_network_gets_no_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "rednet50", lambda: nn.Conv2d(3, 8, 3))
    path = tmp_path / "network.csv"
    assert network.main(["--quick", "--device", "cpu", "--output", str(path)]) == 1
    assert "rednet50 has 224 parameters, but 15,540,806 were published" in capsys.readouterr().err
    assert not path.exists()


def test_a_wrong_fusion_gets_no_time(monkeypatch):
    monkeypatch.setattr(network, "fuse", lambda model: nn.Sequential(model, nn.LeakyReLU(2.0)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(network.WrongNetworkError, match="other outputs"):
        network.folded("rednet50", model, torch.randn(2, 3, 2, 2))


def test_calls_take_turns():
    turns: list[str] = []
    samples = network.alternate(
        [lambda: turns.append("a"), lambda: turns.append("b")], torch.device("cpu"), seconds=0, least=3
    )
    assert "".join(turns) == "ab" * 4  # the first are not counted
    assert [len(each) for each in samples] == [3, 3]
