"""torch.export of a model of maps, with the batch and every spatial size left open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

AXIS_NAMES = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}


def nodes_of(program: torch.export.ExportedProgram) -> Iterator[torch.fx.Node]:
    """The nodes of a program, those of the branches inside it (``torch.cond``) too."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


def map_axes(example: Tensor, model: Any = None) -> dict[int, str]:
    """The axes of a ``(batch, channels, *space)`` tensor that differ from run to run, and their names.

    A model that takes one image at a time, as detectors do, says so by an attribute ``export_axes`` of this kind.

    Raises:
        ValueError: the tensor does not have one, two or three spatial axes.
    """
    if example.dim() not in AXIS_NAMES:
        raise ValueError(
            "An example input must be (batch, channels, *space) with one, two or three spatial axes, but its shape "
            f"is {tuple(example.shape)}. State dynamic_shapes, as for torch.export.export, for other inputs."
        )
    own = getattr(model, "export_axes", None)
    return {0: "batch", **dict(enumerate(AXIS_NAMES[example.dim()], start=2))} if own is None else own


def export_program(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = "maps",
) -> torch.export.ExportedProgram:
    """Exports a model by ``torch.export.export``, by default for any batch and spatial size.

    Args:
        model (nn.Module): The model, in evaluation mode.
        args (tuple): Example inputs. torch.export takes sizes of 1 for constants, so with ``dynamic_shapes="maps"`` a
            batch of 1 is repeated to stay open.
        kwargs (mapping, optional): Example inputs by name. Default: None
        dynamic_shapes (str or dict, optional): ``"maps"`` means that ``args`` is one tensor ``(batch, channels,
            *space)``, of which all sizes but the channels are open, or those that the model names (:func:`map_axes`).
            Otherwise as for ``torch.export.export``; None leaves no size open. Default: ``"maps"``

    Returns:
        torch.export.ExportedProgram: The exported program.

    Raises:
        ValueError: If the model is in training mode, or ``dynamic_shapes="maps"`` does not fit the inputs.
        Exception: what torch.export raises where it cannot export the model or leave a size open.
    """
    if model.training:
        raise ValueError(
            "The model is in training mode, in which normalisation and dropout differ from inference. "
            "Call model.eval() first."
        )
    if dynamic_shapes == "maps":
        if len(args) != 1 or not isinstance(args[0], Tensor) or kwargs:
            raise ValueError(
                'dynamic_shapes="maps" is for a model of one tensor. State dynamic_shapes, as for '
                "torch.export.export, or None to leave no size open."
            )
        example = args[0]
        sizes = {axis: torch.export.Dim.DYNAMIC for axis in map_axes(example, model)}
        if any(example.shape[axis] < 2 for axis in sizes if axis != 0):
            raise ValueError(
                "The spatial sizes of an example input must be at least 2 to be left open, but its shape is "
                f"{tuple(example.shape)}."
            )
        # Repeated in memory, since strides of the example are taken for those of every input.
        repeat = 0 in sizes and example.shape[0] == 1
        args = (torch.cat([example, example]) if repeat else example,)
        dynamic_shapes = (sizes,)
    with torch.no_grad():
        return torch.export.export(model, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
