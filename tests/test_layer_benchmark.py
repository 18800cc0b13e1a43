"""The benchmark of one layer against a convolution."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks import cases, environment, layer, results, timing
from involution import _fused

CPU = torch.device("cpu")
SMALL = cases.Case("rednet-small", 2, 32, (9, 7), (3, 3), 2)


def test_a_quick_run(tmp_path, capsys):
    path = tmp_path / "layer.csv"
    arguments = ["--quick", "--device", "cpu", "--shapes", "rednet-4", "--output", str(path)]
    assert layer.main(arguments) == 0
    rows = results.load(path, "layer")["results"]
    assert [(row["case"], row["mode"]) for row in rows] == [("rednet-4", "forward"), ("rednet-4", "training")]
    for row in rows:
        assert row["layers"].keys() == {"unfused", "conv3x3"}
        times = {name: each["us"] for name, each in row["layers"].items()}
        assert row["ratios"] == {"unfused": pytest.approx(times["unfused"] / times["conv3x3"])}
        assert not any("peak_bytes" in each for each in row["layers"].values())
    printed = capsys.readouterr().out
    assert all(layer.describe(row) in printed for row in rows)
    assert "Not fused: The fused kernel runs on CUDA devices, but the input is on cpu." in printed


def test_where_there_is_a_kernel_all_three_are_measured(monkeypatch):
    monkeypatch.setattr(_fused, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(_fused, "why_unavailable", lambda *arguments: None)
    row = layer.measure(SMALL, "training", "float32", CPU, timing.QUICK, 0)
    assert list(row["layers"]) == ["fused", "unfused", "conv3x3"]
    assert row["not_fused"] is None and row["ratios"].keys() == {"fused", "unfused"}
    assert all(math.isfinite(each["us"]) for each in row["layers"].values())


def test_kernels_of_the_backward_pass_are_measured_too(backward_kernels_pretended):
    case = cases.Case("rednet-small", 2, 32, (5, 6), (7, 7))
    for mode, names in (("training", layer.NAMES), ("forward", ("fused", "unfused", "conv3x3"))):
        row = layer.measure(case, mode, "float32", CPU, timing.QUICK, 0)
        assert tuple(row["layers"]) == names
    assert backward_kernels_pretended


def test_wrong_gradients_get_no_time(backward_kernels_pretended, monkeypatch):
    case = cases.Case("rednet-small", 2, 32, (5, 6), (7, 7))
    layers, _ = layer.build(case, CPU, torch.float32)
    x = layer.make_input(case, CPU, torch.float32)
    layer.compare(layers, x)
    call = layer.call_of

    def spoiled(mode, each, x):
        step = call(mode, each, x)
        return (lambda: [2 * gradient for gradient in step()]) if each is layers["backward"] else step

    monkeypatch.setattr(layer, "call_of", spoiled)
    with pytest.raises(layer.WrongLayerError, match="backward pass give other gradients"):
        layer.compare(layers, x)


def test_a_training_step_gives_all_gradients():
    layers, _ = layer.build(SMALL, CPU, torch.float32)
    x = layer.make_input(SMALL, CPU, torch.float32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    for each in layers.values():
        gradients = layer.call_of("training", each.train(), x.detach())()
        shapes = [tuple(tensor.shape) for tensor in (x, *each.parameters())]
        assert [tuple(gradient.shape) for gradient in gradients] == shapes
    output = layer.call_of("forward", layers["conv3x3"], x)()
    assert output.is_inference() and output.shape == SMALL.output_shape


def test_a_wrong_layer_gets_no_time(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(_fused, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(_fused, "why_unavailable", lambda *arguments: None)
    build = layer.build

    def spoiled(*arguments):
        layers, reason = build(*arguments)
        with torch.no_grad():
            layers["fused"].span.weight.mul_(2)
        return layers, reason

    monkeypatch.setattr(layer, "build", spoiled)
    path = tmp_path / "layer.csv"
    arguments = ["--quick", "--device", "cpu", "--shapes", "rednet-4", "--output", str(path)]
    assert layer.main(arguments) == 1
    assert "gives other outputs" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("shapes", "message"), [("sequence", "among RedNet's"), ("none", "No shape is called")]
)
def test_wrong_shapes_are_explained(shapes, message, capsys):
    with pytest.raises(SystemExit):
        layer.main(["--device", "cpu", "--shapes", shapes])
    assert message in capsys.readouterr().err


def test_memory_is_not_counted_on_a_cpu():
    assert environment.peak_bytes(lambda: torch.ones(3), CPU) is None


def test_memory_is_what_a_call_adds(monkeypatch):
    """On a device that had 100 bytes, of which a call needs 250 for a moment."""
    called = []
    for name, answer in (("synchronize", None), ("reset_peak_memory_stats", None), ("memory_allocated", 100)):
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 350 if called else 100)
    assert environment.peak_bytes(lambda: called.append(0), torch.device("cuda")) == 250


def test_the_counted_bytes_of_the_documentation():
    """Every tensor read or written once, in a half type, for one image."""
    text = (Path(__file__).parents[1] / "docs" / "fused.md").read_text("utf-8")
    for case in cases.REDNET:
        maps = case.channels * (math.prod(case.input_size) + math.prod(case.output_size))
        fused = 2 * (maps + case.channels // 4 * math.prod(case.output_size))
        kernels = 2 * math.prod(case.weight_shape)
        unfused = fused + 2 * kernels
        figures = (
            f"{unfused / 1e6:.2f}",
            f"{fused / 1e6:.2f}",
            f"{unfused / fused:.1f}",
            f"{kernels / 1e6:.2f}",
        )
        size = " x ".join(map(str, (case.channels, *case.input_size)))
        assert f"| `{case.name}` | {size} | {' | '.join(figures)} |" in text
