"""ONNX: standard operators only, the numbers of the oracle, and no unfolded map."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cases
import pytest
import torch
from cases import Case

import involution

onnx = pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
if not hasattr(torch.onnx, "ops"):
    pytest.skip(f"torch {torch.__version__} is older than 2.8", allow_module_level=True)

import involution.export.onnx  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ort.set_default_logger_severity(3)


# ---- the operators, against the oracle ----


class Calls(torch.nn.Module):
    """An operator's results for several cases, whose operands follow each other."""

    def __init__(self, operation: str, arguments: Sequence[tuple]) -> None:
        super().__init__()
        self.operator = getattr(torch.ops.involution, operation)
        self.arguments = arguments

    def forward(self, *operands: torch.Tensor) -> list[torch.Tensor]:
        pairs = zip(operands[::2], operands[1::2], strict=True)
        return [
            self.operator(*pair, *arguments) for pair, arguments in zip(pairs, self.arguments, strict=True)
        ]


def run_operator(
    operation: str, operands: Sequence[torch.Tensor], arguments: Sequence[tuple]
) -> list[torch.Tensor]:
    """What ONNX Runtime makes of the operator in a file without any size left open."""
    operands = [operand.contiguous() for operand in operands]
    model = Calls(operation, arguments).eval()
    program = involution.export.onnx.export(model, tuple(operands), dynamic_shapes=None)
    return run_model_outputs(program, *operands)


@pytest.mark.parametrize("operation", cases.OPERATIONS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_operators_agree_with_the_definition(operation: str, axes: int) -> None:
    """Strides, dilations, paddings, even kernels, kernels larger than the map, sizes of 1: drawn at random."""
    rng = random.Random(f"onnx {operation} {axes}")
    dtypes = (torch.float64, torch.float32, torch.float16)
    drawn = [cases.random_case(rng, axes, dtypes=dtypes) for _ in range(8)]
    operands = [operand for case in drawn for operand in case.operands(operation)]
    arguments = [case.arguments(operation) for case in drawn]
    results = run_operator(operation, operands, arguments)
    for number, (result, given) in enumerate(zip(results, arguments, strict=True)):
        cases.assert_right(result, operation, *operands[2 * number : 2 * number + 2], given)


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_frames_are_independent(operation: str) -> None:
    """Windows that reach beyond the map on either side, or leave out its beginning or its end."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 7, 6, generator=generator, dtype=torch.float64)
    w = torch.randn(2, 2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 4, 4, 5, generator=generator, dtype=torch.float64)
    windows = [((2, 1), padding, (1, 2)) for padding in ((1, 0), (-1, 2), (0, -2), (9, 3))]
    operands, leading = {
        "involution": ((x, w), ()),
        "involution_transpose": ((y, w), ((7, 6),)),
        "local_correlation": ((y, x), ((2, 3), 2)),
    }[operation]
    arguments = [(*leading, *window) for window in windows]
    for result, given in zip(run_operator(operation, operands * 4, arguments), arguments, strict=True):
        cases.assert_right(result, operation, *operands, given)


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_an_empty_batch_is_empty(operation: str) -> None:
    case = Case(0, 2, 3, (5, 6), (3, 3), (1, 2), (1, 1), (1, 1), torch.float32)
    operands, arguments = case.operands(operation), case.arguments(operation)
    expected = getattr(torch.ops.involution, operation)(*operands, *arguments)
    assert run_operator(operation, operands, [arguments])[0].shape == expected.shape


def test_half_types_are_summed_in_float32() -> None:
    """Eight of 2048 + 1: float16 has no 2049, so a sum in it would lose every 1."""
    x = torch.full((1, 1, 16), 2048.0, dtype=torch.float16)
    x[..., 1::2] = -2048.0
    w = torch.ones(1, 1, 16, 1, dtype=torch.float16)
    x[..., 0] = 1.0  # 1 - 2048 + 2048 - ... - 2048 is -2047
    assert run_operator("involution", (x, w), [((1,), (0,), (1,))])[0].item() == -2047.0


# ---- models ----


def run_model(program: torch.onnx.ONNXProgram, *inputs: torch.Tensor) -> torch.Tensor:
    (result,) = run_model_outputs(program, *inputs)
    return result


def run_model_outputs(program: torch.onnx.ONNXProgram, *inputs: torch.Tensor) -> list[torch.Tensor]:
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert not model.functions
    assert {node.domain for node in nodes_of(model.graph)} <= {"", "ai.onnx"}
    session = ort.InferenceSession(model.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feeds)]


def nodes_of(graph) -> list:
    """All nodes, those of the loops' bodies too."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            found += nodes_of(attribute.g) if attribute.HasField("g") else []
    return found


def with_random_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Running means and variances that are not 0 and 1, in eval()."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


MODELS = {
    "Involution1d": (lambda: involution.Involution1d(16, 4, dilation=2), (2, 16, 12), (5, 16, 9)),
    "Involution2d": (lambda: involution.Involution2d(32, 7, stride=2), (1, 32, 10, 12), (3, 32, 9, 7)),
    "Involution3d": (lambda: involution.Involution3d(16, 3, padding=1), (1, 16, 4, 5, 6), (2, 16, 5, 3, 4)),
    "InvolutionLayer": (
        lambda: involution.InvolutionLayer(3, 32, 4, stride=2, padding=1),
        (1, 3, 12, 12),
        (4, 3, 9, 17),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_models_agree_with_eager_at_other_sizes(name: str) -> None:
    torch.manual_seed(0)
    make, example, other = MODELS[name]
    model = with_random_statistics(make())
    program = involution.export.onnx.export(model, (torch.randn(example),))
    for shape in (example, other, (1, *other[1:])):
        x = torch.randn(shape)
        torch.testing.assert_close(run_model(program, x), model(x), rtol=1e-4, atol=1e-4)


class Composed(torch.nn.Module):
    """The three operations with two inputs, and a result whose size depends on theirs."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = involution.involution2d(x, weight, stride=2, padding=1, dilation=(1, 2))
        spread = involution.involution_transpose2d(y, weight, stride=2, padding=1, output_padding=1)
        scores = involution.local_correlation2d(spread, spread, (2, 4), groups=2, padding="same")
        return involution.involution2d(spread, scores, padding="same")


def test_operations_with_dynamic_shapes_of_ones_own() -> None:
    height, width = torch.export.Dim("height"), torch.export.Dim("width")

    def inputs(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.randn(batch, 2, 3, 3, height, width)
        return torch.randn(batch, 4, 2 * height, 2 * width + 2), weight

    batch = torch.export.Dim("batch")
    shapes = ({0: batch, 2: 2 * height, 3: 2 * width + 2}, {0: batch, 4: height, 5: width})
    program = involution.export.onnx.export(Composed().eval(), inputs(2, 4, 5), dynamic_shapes=shapes)
    for size in ((2, 4, 5), (3, 7, 6), (1, 3, 9)):
        arguments = inputs(*size)
        expected = Composed()(*arguments)
        torch.testing.assert_close(run_model(program, *arguments), expected, rtol=1e-4, atol=1e-4)


def test_gradients_can_be_exported_too() -> None:
    """A size that does not follow from the tensors is an input of its own."""

    class InputGradient(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
            return torch.ops.involution.involution_transpose(grad, weight, x.shape[2:], (2,), (1,), (1,))

    dim = torch.export.Dim
    length, out = dim("length"), dim("out")
    shapes = ({2: length}, {3: out}, {2: out})
    operands = torch.randn(1, 4, 9), torch.randn(1, 2, 3, 5), torch.randn(1, 4, 5)
    program = involution.export.onnx.export(InputGradient().eval(), operands, dynamic_shapes=shapes)
    x, weight, grad = torch.randn(1, 4, 14), torch.randn(1, 2, 3, 7), torch.randn(1, 4, 7)
    torch.testing.assert_close(run_model(program, x, weight, grad), InputGradient()(x, weight, grad))


def test_torch_s_own_export_takes_the_table() -> None:
    model, x = involution.Involution2d(16, 3, stride=2).eval(), torch.randn(2, 16, 7, 9)
    options = {"dynamo": True, "verbose": False}
    table = involution.export.onnx.translation_table()
    program = torch.onnx.export(model, (x,), custom_translation_table=table, **options)
    torch.testing.assert_close(run_model(program, x), model(x), rtol=1e-4, atol=1e-4)


def test_torch_s_own_export_hints_at_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(involution._library, "onnx_translations_are_known", False)
    model, x = involution.Involution2d(16, 3).eval(), torch.randn(2, 16, 7, 9)
    hint = r"custom_translation_table=involution\.export\.onnx\.translation_table\(\)"
    with pytest.warns(UserWarning, match=hint), pytest.raises(Exception, match="No ONNX function found"):
        torch.onnx.export(model, (x,), dynamo=True, verbose=False)


# ---- size and memory ----


def test_a_fused_involution_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that was traced where the layer takes the fused operator has standard operators all the same."""
    monkeypatch.setattr(involution._fused, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(involution._fused, "why_unavailable", lambda *arguments: None)
    model = with_random_statistics(
        involution.models.RedNet((1,), widths=(16,), stem_channels=32, num_classes=5)
    )
    model = involution.models.fuse(model)
    program = involution.export.onnx.export(model, (torch.randn(2, 3, 37, 41),))
    x = torch.randn(3, 3, 33, 40)
    torch.testing.assert_close(run_model(program, x), model(x), rtol=1e-3, atol=1e-4)


def test_the_graph_does_not_grow_with_the_kernel() -> None:
    counts = []
    for kernel_size in (3, 7):
        model = involution.Involution2d(16, kernel_size, norm_layer=None).eval()
        graph = involution.export.onnx.export(model, (torch.randn(2, 16, 9, 9),)).model_proto.graph
        counts.append(len(nodes_of(graph)))
    assert counts[0] == counts[1] < 60


MEMORY = """
import sys
import numpy as np
import onnxruntime
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
session = onnxruntime.InferenceSession(sys.argv[1])
x = np.ones((8, 64, 56, 56), np.float32)
w = np.ones((8, 4, 7, 7, 56, 56), np.float32)
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak()
session.run(None, {"x": x, "w": w})
print(peak() - before, x.nbytes, w.nbytes)
"""


def test_memory_is_that_of_a_few_maps(tmp_path: Path) -> None:
    """The unfolded map is 49 maps. Beyond its kernels an involution takes a few: padded, sum, copy, product."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc to measure the peak of memory")

    class Involve(torch.nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return involution.involution2d(x, w, padding="same")

    operands = torch.randn(8, 64, 56, 56), torch.randn(8, 4, 7, 7, 56, 56)
    path = tmp_path / "involution.onnx"
    involution.export.onnx.export(
        Involve().eval(), operands, path, dynamic_shapes=None, input_names=["x", "w"]
    )
    command = [sys.executable, "-c", MEMORY, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, x_bytes, w_bytes = map(int, result.stdout.split())
    assert taken < 8 * x_bytes + w_bytes


# ---- what the file says, and what is refused ----


def test_names_metadata_and_nothing_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), involution.Involution2d(8, 3)).eval()
    involution.export.onnx.export(
        model,
        (torch.randn(1, 3, 8, 8),),
        path,
        input_names=["images"],
        output_names=["maps"],
        opset_version=20,
        metadata={"classes": "cat\ndog"},
    )
    proto = onnx.load(path)
    assert [opset.version for opset in proto.opset_import] == [20]
    assert {entry.key: entry.value for entry in proto.metadata_props} == {"classes": "cat\ndog"}
    dims = [dim.dim_param or dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert (proto.graph.input[0].name, dims) == ("images", ["batch", 3, "height", "width"])
    assert proto.graph.output[0].name == "maps"
    assert str(ROOT).encode() not in path.read_bytes()


def test_bfloat16_takes_an_opset_that_has_it() -> None:
    model = involution.Involution2d(16, 3).eval().bfloat16()
    program = involution.export.onnx.export(model, (torch.randn(2, 16, 8, 8, dtype=torch.bfloat16),))
    onnx.checker.check_model(program.model_proto, full_check=True)
    with pytest.raises(ValueError, match="bfloat16 weights must be at least 22, not 18"):
        involution.export.onnx.export(model, (torch.randn(1, 16, 8, 8),), opset_version=18)


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_a_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}.*pip install -e '\.\[onnx\]'"):
        involution.export.onnx.export(involution.Involution2d(16).eval(), (torch.randn(1, 16, 8, 8),))


def test_bad_arguments_are_explained() -> None:
    model, x = involution.Involution2d(16), torch.randn(1, 16, 8, 8)
    with pytest.raises(ValueError, match="training mode"):
        involution.export.onnx.export(model, (x,))
    model.eval()
    with pytest.raises(ValueError, match="at least 18, not 17"):
        involution.export.onnx.export(model, (x,), opset_version=17)
    with pytest.raises(ValueError, match="one tensor"):
        involution.export.onnx.export(model, (x, x))
    with pytest.raises(ValueError, match=r"one, two or three spatial axes.*\(4, 16\)"):
        involution.export.onnx.export(model, (torch.randn(4, 16),))


def test_a_window_that_depends_on_sizes_is_refused() -> None:
    class Window(torch.nn.Module):
        def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return torch.ops.involution.involution(x, weight, (1,), (x.shape[2] // 4,), (1,))

    shapes = ({2: torch.export.Dim("length")}, None)
    operands = torch.randn(1, 4, 8), torch.randn(1, 2, 3, 8)
    with pytest.raises(Exception, match=r"padding of involution is .* depends on the sizes of tensors"):
        involution.export.onnx.export(Window().eval(), operands, dynamic_shapes=shapes)
