"""ONNX models of networks that use involution, made of standard ONNX operators alone.

:func:`export` is ``torch.onnx.export(dynamo=True)`` for networks of maps, with batch and size left open;
:func:`translation_table` is for those who call ``torch.onnx.export`` themselves. The operators become loops over kernel
points (``_onnx_operations.py`` says why), so any runtime runs the file without a custom operator, and no map is ever
unfolded. Both need onnx and onnxscript: ``pip install -e '.[onnx]'``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _library
from .._composition import compose
from .program import export_program, map_axes, nodes_of

__all__ = ["export", "translation_table"]

LEAST_OPSET = 18  # the first whose operators the exporter of torch is written for
BFLOAT16_OPSET = 22  # the first with convolutions of bfloat16


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translations of involution's operators, for ``torch.onnx.export(dynamo=True)``.

    Without them it stops at ``No ONNX function found for <OpOverload(op='involution.involution', ...)>``. The fused
    operator, which layers take on a GPU for half types, has none: :func:`export` takes it apart first.

    Example:
        >>> model = involution.Involution2d(32).eval()
        >>> table = involution.export.onnx.translation_table()
        >>> program = torch.onnx.export(
        ...     model, (torch.randn(1, 32, 8, 8),), dynamo=True, custom_translation_table=table, verbose=False
        ... )

    Raises:
        ImportError: onnx or onnxscript is missing, or torch is too old.
    """
    _require()
    from . import _onnx_operations

    _library.onnx_translations_are_known = True
    operators = ("involution", "involution_transpose", "local_correlation")
    return {
        getattr(torch.ops.involution, name).default: getattr(_onnx_operations, name) for name in operators
    }


def export(
    model: nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...] = (),
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = "maps",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> torch.onnx.ONNXProgram:
    """Exports a model to ONNX, with standard operators only.

    Args:
        model (nn.Module or ExportedProgram): A model in evaluation mode, or a program of torch.export, whose dynamic
            shapes are kept.
        args (tuple): Example inputs; see :func:`involution.export.export_program`. Default: ()
        path (str or PathLike, optional): The file to write. Weights of more than 2 GB, the most that an ONNX file can
            hold, are written beside it. Default: None, no file
        kwargs (mapping, optional): Example inputs by name. Default: None
        dynamic_shapes (str or dict, optional): As for :func:`involution.export.export_program`. Default: ``"maps"``
        input_names (sequence of str, optional): Names of the inputs. Default: those of the model's arguments
        output_names (sequence of str, optional): Names of the outputs. Default: torch's
        opset_version (int, optional): Opset version of ONNX, at least 18, or 22 for models with bfloat16 weights.
            Default: the least
        metadata (mapping of str to str, optional): Text for the file's ``metadata_props``. Default: None

    Returns:
        torch.onnx.ONNXProgram: The program, as ``torch.onnx.export`` returns it. Its ``model_proto`` is the ONNX model.

    Raises:
        ImportError: onnx or onnxscript is missing, or torch is older than 2.8.
        ValueError: an argument is out of range, or the model is in training mode.
        TypeError: a window of an operation depends on the sizes of tensors, which no ONNX operator can do.
        Exception: what torch.export and torch.onnx.export raise for a model that they cannot export.
    """
    table = translation_table()
    weights = model.state_dict().values()
    bfloat16 = any(isinstance(weight, Tensor) and weight.dtype == torch.bfloat16 for weight in weights)
    least = BFLOAT16_OPSET if bfloat16 else LEAST_OPSET
    opset_version = least if opset_version is None else opset_version
    if opset_version < least:
        of_what = "of a model with bfloat16 weights " if bfloat16 else ""
        raise ValueError(f"The opset_version {of_what}must be at least {least}, not {opset_version}.")
    names: Any = None
    if not isinstance(model, torch.export.ExportedProgram):
        names = (map_axes(args[0], model),) if dynamic_shapes == "maps" and args else None
        model = export_program(model, args, kwargs, dynamic_shapes)
    fused = torch.ops.involution.fused_involution.default
    with _quiet():
        if any(node.target is fused for node in nodes_of(model)):
            model = model.run_decompositions({fused: compose})
        program = torch.onnx.export(
            model,
            dynamo=True,
            custom_translation_table=table,
            dynamic_shapes=names,  # of an exported program, nothing but the names of sizes that are open
            input_names=input_names,
            output_names=output_names,
            opset_version=opset_version,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    _inline_loops(program)
    _check_domains(program)
    _forget_origin(program)
    program.model.metadata_props.update(metadata or {})
    if path is not None:
        program.save(path, external_data=False)
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own code and of torchvision, which has nothing to do with the model."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _require() -> None:
    """Raises where a package that the export needs is missing."""
    for name in ("onnx", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f"The export to ONNX needs {name}, which cannot be imported: {error}. "
                "Install what it needs with: pip install -e '.[onnx]'"
            ) from error
    if not hasattr(torch.onnx, "ops"):
        raise ImportError(
            f"The export to ONNX needs torch 2.8 or later, but this is torch {torch.__version__}."
        )


def _inline_loops(program: torch.onnx.ONNXProgram) -> None:
    """Puts the loops in the place of their calls, and simplifies."""
    import onnx_ir
    from onnx_ir.passes import common

    common.InlinePass()(program.model)
    weights = program.model.graph.initializers.values()
    # The optimiser merges normalisations into convolutions, in float32: of bfloat16 it makes an invalid model.
    if all(weight.dtype != onnx_ir.DataType.BFLOAT16 for weight in weights):
        program.optimize()
    common.NameFixPass()(program.model)  # a buffer may be called what an operator's output is


def _check_domains(program: torch.onnx.ONNXProgram) -> None:
    """Raises where a node is not of ONNX's standard operators."""
    model = program.model
    custom = {f"{node.domain}::{node.op_type}" for node in model.graph.all_nodes() if node.domain}
    if custom or model.functions:
        raise RuntimeError(
            f"The exported model has operators that are not ONNX's own: {sorted(custom)}. This is a defect, "
            "or another library's operators are in the model."
        )
    for domain in [domain for domain in model.opset_imports if domain]:
        del model.opset_imports[domain]


def _forget_origin(program: torch.onnx.ONNXProgram) -> None:
    """Removes the stack traces of the export, which are half of a small file and name this machine's folders."""
    graph = program.model.graph
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
