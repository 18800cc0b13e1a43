"""Writing and loading the files, one pair of functions for each format."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._build_info import build_info, rebuild_command
from .program import export_program, nodes_of

Outputs = Tensor | tuple[Tensor, ...]
Runner = Callable[[Tensor], Outputs]

METADATA_FILE = "involution.json"  # inside a pt2 file


class ExportError(RuntimeError):
    """A model cannot be exported to a format, or a file of it cannot be run here."""


class Format(NamedTuple):
    """One way to deploy.

    Attributes:
        suffix: what its files' names end with.
        title: its name in words.
        write: ``write(model, example, path, metadata, opset_version, output_names)``.
        load: from a path to a function of a batch of images and the metadata.
    """

    suffix: str
    title: str
    write: Callable[[nn.Module, Tensor, Path, Mapping[str, str], int | None, Sequence[str]], None]
    load: Callable[[Path], tuple[Runner, dict[str, str]]]


def export_model(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    format: str,
    *,
    metadata: Mapping[str, str] | None = None,
    opset_version: int | None = None,
    output_names: Sequence[str] | None = None,
) -> Path:
    """Writes a model to a file that takes any batch and spatial size.

    Args:
        model (nn.Module): A model in evaluation mode that takes ``(batch, channels, *space)`` and returns tensors. It
            is exported for the device that it is on, except to ONNX, which has no devices. Its attribute
            ``export_axes``, if it has one, names the axes that stay open if these are not all but the channels: a
            detector's (:class:`involution.detection.DeployableDetector`) are ``{2: "height", 3: "width"}``.
        example (Tensor): An input on the model's device, with spatial sizes of at least 2. Its values do not matter.
        path (str or PathLike): The file to write. It is written as a whole or not at all.
        format (str): ``"pt2"``, ``"aoti"`` or ``"onnx"``; see ``involution.export``.
        metadata (mapping of str to str, optional): Text to keep in the file. :func:`load` returns it, and the
            ``device``. Default: None
        opset_version (int, optional): Opset version of an ONNX file; see :func:`involution.export.onnx.export`.
        output_names (sequence of str, optional): Names of an ONNX file's outputs, one for each tensor that the model
            returns. Default: the model's attribute ``export_outputs``, or ``("scores",)`` if it has none

    Returns:
        Path: The path.

    Raises:
        ValueError: the format is unknown, the path does not end as it must, or the model is in training mode.
        ImportError: a package that the format needs is missing; the message says how to install it.
        ExportError: the format cannot hold this model, or something that it needs on this machine is missing.
    """
    chosen = _format(format)
    path = Path(path)
    if not path.name.endswith(chosen.suffix):
        raise ValueError(
            f"The name of a file of format {format!r} must end with {chosen.suffix!r}, but it is {path.name!r}."
        )
    if model.training:
        raise ValueError("The model is in training mode. Call model.eval() first.")
    kept = {**(metadata or {}), "device": "cpu" if format == "onnx" else example.device.type}
    try:
        # Under the same name, which some formats write into the file.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            names = getattr(model, "export_outputs", ("scores",)) if output_names is None else output_names
            chosen.write(model, example, unfinished, kept, opset_version, tuple(names))
            unfinished.replace(path)
    except (ExportError, ImportError, OSError):
        raise
    except Exception as error:
        raise ExportError(
            f"{chosen.title} cannot export this {type(model).__name__}: {type(error).__name__}: {error}"
        ) from error
    return path


def load(path: str | os.PathLike[str], format: str) -> tuple[Runner, dict[str, str]]:
    """Loads a file that :func:`export_model` wrote.

    Args:
        path (str or PathLike): The file.
        format (str): Its format.

    Returns:
        tuple of callable and dict: A function of a batch on the CPU that returns the model's outputs on the CPU, and
        the file's metadata. One output is a tensor. Several are a tuple, in the order of
        ``torch.utils._pytree.tree_leaves`` of what the model returns.

    Raises:
        ValueError: the format is unknown.
        FileNotFoundError: there is no such file.
        ImportError: a package that runs the format is missing; the message says how to install it.
        ExportError: the file cannot be run here.
    """
    chosen = _format(format)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return chosen.load(Path(path))
    except (ExportError, ImportError):
        raise
    except Exception as error:
        hint = " Import torchvision first, whose operators it calls." if "torchvision" in str(error) else ""
        raise ExportError(
            f"{chosen.title} file {path} cannot be run here: {type(error).__name__}: {error}{hint}"
        ) from error


def _flat(outputs: Any) -> Outputs:
    """What a model returns: its one tensor, or a tuple of them, on the CPU."""
    tensors = tuple(tensor.cpu() for tensor in pytree.tree_leaves(outputs))
    return tensors[0] if len(tensors) == 1 else tensors


# ---- torch.export ----


def _write_pt2(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str], *_: Any) -> None:
    extra = {METADATA_FILE: json.dumps(metadata)}
    torch.export.save(export_program(model, (example,)), path, extra_files=extra)


def _load_pt2(path: Path) -> tuple[Runner, dict[str, str]]:
    extra = {METADATA_FILE: ""}
    model = torch.export.load(path, extra_files=extra).module()

    metadata = json.loads(extra[METADATA_FILE])

    def run(images: Tensor) -> Outputs:
        with torch.no_grad():
            return _flat(model(images.to(metadata["device"])))

    return run, metadata


# ---- AOTInductor ----


def _write_aoti(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, str], *_: Any) -> None:
    from torch._inductor import config as inductor_config

    info = build_info()
    if info["extension"] is None:
        raise ExportError(
            "An AOTInductor package calls the operators of involution's compiled library, but involution was "
            f"installed without it. Build it: {rebuild_command()}"
        )
    if example.is_cuda and info["cuda"] is None:
        raise ExportError(
            f"An AOTInductor package for CUDA calls involution's CUDA kernels. {info['no_cuda_reason']} "
            f"Build them: INVOLUTION_BUILD=cuda {rebuild_command()}"
        )
    program = export_program(model, (example,))
    _check_pooling(program)
    configs: dict[str, Any] = {"aot_inductor.metadata": dict(metadata)}
    if hasattr(inductor_config.aot_inductor, "check_lowerbound"):
        # torch.export calls an open size at least 2. Packages that check their inputs would refuse a single image.
        configs["aot_inductor.check_lowerbound"] = False
    if _convolves_unknown_counts(program):
        # Inductor would have such convolutions computed in channels_last, and read their results as contiguous.
        configs["layout_optimization"] = False
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    except Exception as error:
        if "InvalidCxxCompiler" in f"{type(error).__name__}: {error}":
            raise ExportError(
                "AOTInductor makes machine code of the model with a C++ compiler, and found none that works. "
                "Install g++, or name a compiler in the environment variable CXX."
            ) from error
        raise


def _convolves_unknown_counts(program: torch.export.ExportedProgram) -> bool:
    """Whether a size of a map that is convolved depends on data, as the number of a detector's regions does."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return any(
        str(node.target).startswith("aten.conv")
        and free_unbacked_symbols(node.all_input_nodes[0].meta["val"].shape)
        for node in nodes_of(program)
    )


def _check_pooling(program: torch.export.ExportedProgram) -> None:
    """Raises where a pooling rounds its size up: Inductor decides by the example's size how such a one is compiled."""
    for node in nodes_of(program):
        arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
        place = next((i for i, argument in enumerate(arguments) if argument.name == "ceil_mode"), None)
        if place is not None and (node.args[place : place + 1] == (True,) or node.kwargs.get("ceil_mode")):
            raise NotImplementedError(
                f"AOTInductor compiles pooling with ceil_mode for some sizes only, and the model has {node.target} so. "
                "Pad the map and pool without ceil_mode instead, as involution.layers.pooling.BlockAverage does."
            )


def _load_aoti(path: Path) -> tuple[Runner, dict[str, str]]:
    package = torch._inductor.aoti_load_package(str(path))
    metadata = package.get_metadata()

    def run(images: Tensor) -> Outputs:
        # A package takes the strides of its input for those of its example. Also a stride of an axis of size 1, which
        # means nothing and stays through contiguous(), makes a convolution choose another memory format.
        canonical = images.to(metadata["device"]).contiguous().flatten().view(images.shape)
        with torch.no_grad():
            return _flat(package(canonical))

    return run, metadata


# ---- ONNX ----


def _write_onnx(
    model: nn.Module,
    example: Tensor,
    path: Path,
    metadata: Mapping[str, str],
    opset_version: int | None,
    output_names: Sequence[str],
) -> None:
    from . import onnx

    onnx.export(
        model,
        (example,),
        path,
        input_names=["images"],
        output_names=output_names,
        opset_version=opset_version,
        metadata=metadata,
    )


def _load_onnx(path: Path) -> tuple[Runner, dict[str, str]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"Running {path} needs ONNX Runtime, which cannot be imported: {error}. "
            "Install it with: pip install -e '.[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Outputs:
        return _flat([torch.from_numpy(output) for output in session.run(None, {name: images.numpy()})])

    return run, dict(session.get_modelmeta().custom_metadata_map)


FORMATS = {
    "pt2": Format(".pt2", "torch.export", _write_pt2, _load_pt2),
    "aoti": Format(".pt2", "AOTInductor", _write_aoti, _load_aoti),
    "onnx": Format(".onnx", "ONNX", _write_onnx, _load_onnx),
}


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"The format must be one of {', '.join(FORMATS)}, not {name!r}.")
    return FORMATS[name]
