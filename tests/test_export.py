"""torch.export and AOTInductor, and the command that makes files to deploy of a checkpoint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from exported_files import ExportedFiles, write_checkpoint

import involution
from involution.export import (
    Deployable,
    ExportError,
    compare,
    comparison,
    export_checkpoint,
    export_model,
    export_program,
    load,
    table,
)
from involution.export.__main__ import main
from involution.export.program import nodes_of
from involution.export.trained import deployable
from involution.models import create_model

# ---- torch.export ----


class Operations(torch.nn.Module):
    """The three operations of one map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = involution.local_correlation2d(x, x, (3, 2), groups=2, padding="same")
        spread = involution.involution_transpose2d(x, scores, stride=2, padding=1)
        inner = spread[:, :, : x.shape[2], : x.shape[3]]
        return involution.involution2d(inner, scores.softmax(2), padding="same")


@pytest.mark.parametrize(
    "make, channels",
    [
        (Operations, 4),
        (lambda: involution.Involution2d(16, 7, stride=2), 16),
        (lambda: involution.InvolutionLayer(3, 16, 4, stride=2, padding=1), 3),
        (lambda: create_model("rednet_tiny"), 3),
    ],
    ids=["operations", "Involution2d", "InvolutionLayer", "rednet_tiny"],
)
@torch.no_grad()
def test_programs_take_any_batch_and_size(make, channels: int) -> None:
    """Also a batch of 1, though sizes of 1 are constants to torch.export, and equal sizes, which are not one size."""
    torch.manual_seed(0)
    model = make().eval()
    program = export_program(model, (torch.randn(1, channels, 12, 12),))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "involution.involution.default" in targets  # the operator, not what it is made of
    exported = program.module()
    for size in ((1, 12, 12), (3, 9, 17), (2, 16, 5)):
        x = torch.randn(size[0], channels, *size[1:])
        torch.testing.assert_close(exported(x), model(x))


def test_what_does_not_fit_is_explained() -> None:
    layer = involution.Involution2d(16)
    x = torch.randn(2, 16, 8, 8)
    with pytest.raises(ValueError, match="training mode"):
        export_program(layer, (x,))
    layer.eval()
    with pytest.raises(ValueError, match=r"at least 2 to be left open, but its shape is \(2, 16, 1, 8\)"):
        export_program(layer, (x[:, :, :1],))
    with pytest.raises(ValueError, match=r"one, two or three spatial axes, but its shape is \(2, 16\)"):
        export_program(layer, (x[:, :, 0, 0],))
    with pytest.raises(ValueError, match="for a model of one tensor"):
        export_program(layer, (x, x))


# ---- files ----

ELSEWHERE = """
import sys
sys.modules["involution"] = None  # importing it is an error
import torch
library, pt2, aoti, inputs, outputs = sys.argv[1:]
torch.ops.load_library(library)
exported = torch.export.load(pt2).module()
package = torch._inductor.aoti_load_package(aoti)
results = []
with torch.no_grad():
    for run in (exported, package):
        results.append([])
        for x in torch.load(inputs, weights_only=True):
            junk = [torch.full((1 << size,), float("nan")) for size in range(6, 17)]
            del junk  # what reads memory that it has not written gets this
            results[-1].append(run(x))
torch.save(results, outputs)
"""


def test_files_run_with_torch_and_the_library_alone(exported_files: ExportedFiles, tmp_path: Path) -> None:
    """In a process that has no involution; batches and sizes that were not there when the files were made."""
    model, _ = deployable(exported_files.checkpoint)
    sizes = ((5, 8, 8), (1, 8, 8), (2, 13, 10), (1, 11, 14), (3, 9, 9))  # the strides divide two of these
    inputs = [torch.rand(batch, 1, *size) for batch, *size in sizes]
    torch.save(inputs, tmp_path / "inputs.pt")
    files = (exported_files.pt2, exported_files.aoti, tmp_path / "inputs.pt", tmp_path / "outputs.pt")
    command = [sys.executable, "-c", ELSEWHERE, involution.library_path(), *map(str, files)]
    # torch's own check of what a package is given, which has to let a single image through.
    environment = {**os.environ, "AOTI_RUNTIME_CHECK_INPUTS": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    for results in torch.load(tmp_path / "outputs.pt", weights_only=True):
        torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", ["pt2", "aoti"])
def test_accuracy_and_metadata(exported_files: ExportedFiles, format: str) -> None:
    run, metadata = load(getattr(exported_files, format), format)
    model, info = deployable(exported_files.checkpoint)
    images, labels = exported_files.images()
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(run(images).argmax(1), expected.argmax(1))
    assert (expected.argmax(1) == labels).double().mean() > 0.5  # so that the classes say something
    stated = {name: metadata[name] for name in ("classes", "channels", "size", "model", "device")}
    assert stated == {
        "classes": "\n".join(info["classes"]),
        "channels": "1",
        "size": "8x8",
        "model": "rednet_tiny",
        "device": "cpu",
    }


def test_any_storage_of_the_images(exported_files: ExportedFiles) -> None:
    """A package would read channels_last images as if they were contiguous; what :func:`load` gives does not."""
    run, _ = load(exported_files.aoti, "aoti")
    images = torch.rand(3, 1, 16, 10)
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(run(transposed), run(images))
    # Contiguous, but with a stride of 1 for the only channel, as a picture has whose channels come last.
    channels_last = images[:, 0, :, :, None].permute(0, 3, 1, 2)
    assert channels_last.stride(1) == 1 != images.stride(1)
    torch.testing.assert_close(run(channels_last), run(images))


def test_the_command_compares(exported_files: ExportedFiles) -> None:
    """A line for the model and for each file, with the same accuracy, and what was found is what is printed."""
    try:
        import involution.training.libraries  # noqa: F401
    except ImportError as error:
        assert "Random images, float32" in exported_files.printed
        pytest.skip(str(error))
    lines = {line.split()[0]: line for line in exported_files.printed.splitlines() if line.strip()}
    names = ["eager", "pt2", "aoti", *(["onnx"] if exported_files.onnx else [])]
    accuracies = {re.search(r"(\d+\.\d\d)%", lines[name])[1] for name in names}
    model, _ = deployable(exported_files.checkpoint)
    images, labels = exported_files.images()
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).double().mean().item()
    assert accuracies == {f"{100 * accuracy:.2f}"}
    assert f"{exported_files.aoti.stat().st_size / 1e6:.2f} MB" in lines["aoti"]
    assert "Test images of Digits, float32" in exported_files.printed


def test_the_onnx_file_of_a_rednet(exported_files: ExportedFiles) -> None:
    if exported_files.onnx is None:
        pytest.skip("the extra 'onnx' is not installed")
    import onnx

    run, metadata = load(exported_files.onnx, "onnx")
    assert metadata["classes"].split("\n") == [str(digit) for digit in range(10)]
    proto = onnx.load(exported_files.onnx)
    assert [opset.domain for opset in proto.opset_import] == [""]
    assert {node.domain for node in proto.graph.node} == {""}
    model, _ = deployable(exported_files.checkpoint)
    for images in (exported_files.images()[0], torch.rand(1, 1, 9, 13)):
        with torch.no_grad():
            torch.testing.assert_close(run(images), model(images), rtol=1e-4, atol=1e-4)


def test_without_the_evaluation_images_the_files_are_compared_on_random_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / "best.ckpt")
    monkeypatch.setattr(comparison, "MEASURE_SECONDS", 0.05)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main([str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy stays unknown" in printed and "pip install" in printed
    assert "Random images" in printed and "unknown" in printed.splitlines()[-1]


# ---- parts ----


def test_pooling_that_aoti_would_compile_wrongly_is_refused(tmp_path: Path) -> None:
    for pool in (torch.nn.MaxPool2d(2, ceil_mode=True), torch.nn.AvgPool2d(3, 2, ceil_mode=True)):
        with pytest.raises(
            ExportError, match="AOTInductor compiles pooling with ceil_mode for some sizes only"
        ):
            exported(tmp_path, "aoti", model=pool.eval())


class Boxes(torch.nn.Module):
    """Two outputs of different dtypes, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = involution.Involution2d(16, 3, norm_layer=None)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.layer(images)
        return {"scores": maps.mean((2, 3)), "labels": maps.flatten(2).argmax(2)}


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_several_outputs(tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
        pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    model, images = Boxes().eval(), torch.rand(3, 16, 7, 9)
    path = tmp_path / f"model.{format}"
    export_model(model, torch.rand(2, 16, 8, 8), path, format, output_names=("scores", "labels"))
    run, _ = load(path, format)
    with torch.no_grad():
        expected = model(images)
    scores, labels = run(images)
    torch.testing.assert_close(scores, expected["scores"])
    assert torch.equal(labels, expected["labels"])
    with pytest.raises(
        TypeError, match="Models of one output, the scores, are compared, but it has 2 outputs"
    ):
        compare({"it": (run, None)}, [(images, None)])


def test_deployable_normalises_and_converts() -> None:
    layer = torch.nn.Conv2d(3, 2, 1).eval()
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    images = torch.rand(2, 3, 4, 4)
    normalised = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    with torch.no_grad():
        torch.testing.assert_close(Deployable(layer, mean, std)(images), layer(normalised))
        halved = Deployable(layer, mean, std, torch.bfloat16)(images)
        assert halved.dtype == torch.float32
        torch.testing.assert_close(halved, layer(normalised.bfloat16()).float())
    for bad in (([0.1], [0.0]), ([0.1], [1.0, 1.0]), ([], [])):
        with pytest.raises(ValueError, match="one number for each channel"):
            Deployable(layer, *bad)


def test_compare_counts_and_finds_the_difference(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    scores = torch.eye(3)[[0, 1, 2, 0]]

    def right(images: torch.Tensor) -> torch.Tensor:
        return scores[: len(images)]

    def wrong(images: torch.Tensor) -> torch.Tensor:
        return scores[: len(images)].roll(1, 1) * 3

    runners = {"right": (right, None), "wrong": (wrong, file)}
    batches = [
        (torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 1])),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 1])),
    ]
    first, second = compare(runners, batches, latency_batches=(1,))
    assert (first.accuracy, first.difference, first.size) == (5 / 6, 0.0, None)
    assert (second.accuracy, second.difference, second.size) == (1 / 6, 3.0, 5)
    assert second.latency[1] > 0
    assert [line.split()[:1] for line in table([first, second]).splitlines()[1:]] == [["right"], ["wrong"]]
    with pytest.raises(ValueError, match="no images"):
        compare(runners, [])


# ---- what cannot be done ----


def exported(
    tmp_path: Path, format: str, name: str = "model.pt2", model: torch.nn.Module | None = None
) -> Path:
    model = involution.Involution2d(16).eval() if model is None else model
    return export_model(model, torch.rand(2, 16, 8, 8), tmp_path / name, format)


def test_wrong_names_and_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of pt2, aoti, onnx, not 'tflite'"):
        exported(tmp_path, "tflite")
    with pytest.raises(ValueError, match=r"must end with '\.pt2', but it is 'model\.onnx'"):
        exported(tmp_path, "aoti", "model.onnx")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load(tmp_path / "model.pt2", "pt2")
    (tmp_path / "model.pt2").write_bytes(b"nonsense")
    for format in ("pt2", "aoti"):
        with pytest.raises(ExportError, match="cannot be run here"):
            load(tmp_path / "model.pt2", format)


def test_a_model_that_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    class Undecided(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"torch\.export cannot export this Undecided"):
        exported(tmp_path, "pt2", model=Undecided().eval())
    assert list(tmp_path.iterdir()) == []


def test_the_nodes_of_a_program_are_those_of_its_branches_too() -> None:
    class Either(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    program = torch.export.export(Either(), (torch.randn(3),))
    targets = {node.target for node in nodes_of(program)}
    assert {torch.ops.aten.sum.default, torch.ops.aten.sin.default, torch.ops.aten.cos.default} <= targets


class Regions(torch.nn.Module):
    """Convolutions of as many maps as the input has values above 1, as a Mask R-CNN's of its regions."""

    export_axes: ClassVar = {2: "height", 3: "width"}

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.second = torch.nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.where(x[0, 0].flatten() > 1)[0]
        maps = x[0].flatten(1).t()[found].view(-1, 8, 1, 1) * torch.linspace(-1, 1, 36).view(6, 6)
        return self.second(self.first(maps).relu())[:, :, 1:].sigmoid()


def test_aoti_of_convolutions_whose_number_depends_on_data(tmp_path: Path) -> None:
    if involution.build_info()["extension"] is None:
        pytest.skip("the library of operators is not compiled")
    torch.manual_seed(0)
    model = Regions().eval()
    run, _ = load(export_model(model, torch.randn(1, 8, 9, 10), tmp_path / "regions.pt2", "aoti"), "aoti")
    for size in ((9, 10), (12, 17)):
        x = torch.randn(1, 8, *size)
        torch.testing.assert_close(run(x), model(x), rtol=1e-5, atol=1e-5)


def test_aoti_without_the_library_of_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = sys.modules["involution.export.formats"]
    monkeypatch.setattr(formats, "build_info", lambda: {"extension": None})
    with pytest.raises(ExportError, match=r"compiled library.*pip install"):
        exported(tmp_path, "aoti")


def test_aoti_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    if involution.build_info()["extension"] is None:
        pytest.skip("the library of operators is not compiled")

    def none_found(*_: object, **__: object) -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ExportError, match=r"found none that works\. Install g\+\+"):
        exported(tmp_path, "aoti")


def test_onnx_runtime_says_what_it_lacks(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    model = Deployable(torch.nn.Conv2d(16, 4, 1), [0.0] * 16, [1.0] * 16, torch.bfloat16).eval()
    path = exported(tmp_path, "onnx", "model.onnx", model)
    with pytest.raises(ExportError, match=r"ONNX file .*model\.onnx cannot be run here: .*implementation"):
        load(path, "onnx")


def test_the_command_explains_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "missing.pt")]) == 1
    assert "error: There is no checkpoint" in capsys.readouterr().err
    assert main(["x.pt", "--format", "pt2", "onnx", "--output", "y"]) == 1
    assert "--output names one file, but there are 2 formats: pt2, onnx." in capsys.readouterr().err
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16, not 'int8'"):
        export_checkpoint(tmp_path / "missing.pt", dtype="int8")
