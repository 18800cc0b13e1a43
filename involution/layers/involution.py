"""The involution layer of the paper, in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .. import _arguments, _fused, _library, _tracing
from .._composition import is_channels_last
from .._docstrings import like_2d
from .._fused import Availability
from ._shared import RELU, ActivationLayer, NormLayer, check_map, pad_argument, per_axis_text
from .epilogue import Epilogue
from .kernel_branch import KernelBranch, KernelNormalizer, factory_arguments
from .pooling import BlockAverage


class _Involution(KernelBranch):
    """Everything about the layers but the number of axes; :class:`Involution2d` documents it."""

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 7,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = "same",
        dilation: int | Sequence[int] = 1,
        group_channels: int | None = None,
        reduction_ratio: int = 4,
        *,
        groups: int | None = None,
        out_channels: int | None = None,
        norm_layer: NormLayer = "batch",
        activation_layer: ActivationLayer = RELU,
        kernel_normalizer: KernelNormalizer = None,
        bias: bool = True,
        fused: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            channels,
            kernel_size,
            group_channels,
            reduction_ratio,
            groups,
            out_channels,
            norm_layer,
            activation_layer,
            kernel_normalizer,
            bias,
            factory_arguments(device, dtype),
        )
        self.stride = _arguments.per_axis(stride, self.axes, "stride", 1)
        # Without the stride, because conv's "same", which the operation follows, refuses one.
        window = _arguments.complete_window(self.axes, self.kernel_size, 1, padding, dilation)
        same = _arguments.complete_window(self.axes, self.kernel_size, 1, "same", dilation)
        self.padding = padding if isinstance(padding, str) else window.padding
        self.dilation = window.dilation
        self.pool = None
        if max(self.stride) > 1:
            self.pool = BlockAverage(self.stride)
        if fused is not None and not isinstance(fused, bool):
            raise TypeError(f"fused must be None, True or False, not {fused!r}.")
        self.fused = fused
        self.epilogue: Epilogue | None = None
        self._window = window._replace(stride=self.stride)
        self._centres = pad_argument(
            [ours - centred for ours, centred in zip(window.padding, same.padding, strict=True)],
            [ours - centred for ours, centred in zip(window.padding_end, same.padding_end, strict=True)],
        )

    def forward(self, input: Tensor) -> Tensor:
        """Runs the layer.

        Args:
            input (Tensor): ``(B, channels, *In)``.

        Returns:
            ``(B, out_channels, *Out)``.

        Raises:
            ValueError: ``input`` has the wrong shape, or the kernel is larger than the padded input.
            RuntimeError: from the convolutions, for a dtype or device that is not the parameters'; or the layer has
                ``fused=True``, and there is no fused kernel for this input.
        """
        check_map(input, "input", self.channels, self.axes)
        centres = input
        if self._centres is not None:
            _check_reach(input, self._window)  # before cropping fails on it
            centres = F.pad(input, self._centres)
        hidden = self.hidden(centres, self.pool)
        values = self.values(input)
        # The kernels fix the output size, so an odd zero of the padding, at the end, needs no mention.
        window = (self.stride, self._window.padding, self.dilation)
        if self._takes_fused(values, hidden):
            epilogue = () if self.epilogue is None else self.epilogue.factors()
            weight = self.span.weight.flatten(1)
            return _library.fused_involution(
                values, hidden, weight, self.span.bias, self.kernel_size, *window, *epilogue
            )
        output = _library.involution(values, self.kernels(hidden), *window)
        return output if self.epilogue is None else self.epilogue(output)

    def fused_available(self, input: Tensor) -> Availability:
        """Whether there is a fused kernel for this layer and an input, and why not.

        With ``fused=None`` the layer takes the kernel where there is one.

        Args:
            input (Tensor): ``(B, channels, *In)``; sizes, dtype, device and storage format count. The kernel branch is
                taken to keep the format.

        Returns:
            Something that is true or false, and whose ``reason`` is a sentence where it is false.
        """
        check_map(input, "input", self.channels, self.axes)
        out = _arguments.output_size(input.shape[2:], self._window, "input")
        storage = (
            torch.channels_last if self.axes == 2 and is_channels_last(input) else torch.contiguous_format
        )

        def like_input(channels: int, space: Sequence[int]) -> Tensor:
            shape = (input.shape[0], channels, *space)
            return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=storage)

        values = input if self.project is None else like_input(self.out_channels, input.shape[2:])
        return Availability(self._why_not_fused(values, like_input(self.span.in_channels, out)))

    def _why_not_fused(self, values: Tensor, hidden: Tensor) -> str | None:
        if isinstance(values, fx.Proxy) or torch.jit.is_tracing():
            return "What torch.fx or torch.jit.trace records is for every input, and the fused kernel is not."
        window = (self.kernel_size, self.stride, self._window.padding, self.dilation)
        return (
            _fused.why_unavailable(values, hidden, self.span.weight, *window)
            or self._why_kernels_are_not_a_product()
        )

    def _takes_fused(self, values: Tensor, hidden: Tensor) -> bool:
        on_device = isinstance(values, Tensor) and values.device.type == _fused.DEVICE_TYPE
        if self.fused is False or (self.fused is None and not on_device):
            return False  # without asking for more, which a small layer on a CPU would notice
        reason = self._why_not_fused(values, hidden)
        if self.fused and reason is not None:
            raise RuntimeError(f"The layer has fused=True, but cannot take the fused kernel. {reason}")
        return reason is None

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        parts = self._repr_parts()
        for name in ("stride", "dilation"):
            if max(getattr(self, name)) > 1:
                parts.append(f"{name}={per_axis_text(getattr(self, name))}")
        if self.padding != "same":
            parts.append(f"padding={self.padding!r}")
        if self.fused is not None:
            parts.append(f"fused={self.fused}")
        return ", ".join(parts)


@fx.wrap
def _check_reach(input: Tensor, window: _arguments.Window) -> None:
    _arguments.output_size(_tracing.shape(input)[2:], window, "input")


class Involution2d(_Involution):
    """Applies a 2D involution whose kernels are made from the input, in the place of a convolution.

    ::

        kernels = normalise(span(activation(norm(reduce(pool(input))))))             (B, G, KH, KW, Hout, Wout)
        output  = involution2d(project(input), kernels, stride, padding, dilation)   (B, out_channels, Hout, Wout)

    ``pool`` is an average pool of size ``stride``, which a layer without a stride does not have. ``project`` is
    there only if ``out_channels`` is not ``channels``. Source: Li et al., "Involution: Inverting the Inherence of
    Convolution for Visual Recognition", CVPR 2021, section 3. The defaults are RedNet's. As there, the kernels are
    not normalised by default: clip gradients in training.

    ``padding="same"`` adds ``dilation*(K - 1)`` zeros along each axis, half of them in front; an odd one goes at the
    end. So the window of output ``o`` is centred at input ``o*stride``, and ``Out = ceil(In / stride)`` for every
    size. For odd kernels without dilation this is the paper's padding, ``(K - 1) // 2`` on both sides. The kernel of
    output ``o`` is made from the mean of the ``stride`` positions that begin at its window's centre, fewer at the end
    of the map. Any other padding gives the output size of a convolution with that padding. It moves kernels and
    windows together: the kernel branch gets the input cropped, or padded by zeros, so that it begins at the first
    window's centre.

    Args:
        channels (int): Channels of the input.
        kernel_size (int or tuple of int): Size of the kernels, odd or even. Default: 7
        stride (int or tuple of int): Step from one window to the next. Default: 1
        padding (int, tuple of int or str): Zeros on both sides, or ``"same"`` as above; ``"valid"`` is 0.
            Default: ``"same"``
        dilation (int or tuple of int): Step from one kernel point to the next. Default: 1
        group_channels (int, optional): How many output channels share a kernel. If there are fewer, all of them do.
            Default: 16, unless ``groups`` is given
        reduction_ratio (int): The kernel branch has ``channels // reduction_ratio`` channels, at least one. Default: 4
        groups (int, optional): The number of groups ``G``, in place of ``group_channels``. If both are given, they must
            agree. Default: None
        out_channels (int, optional): Channels of the output. Default: ``channels``
        norm_layer (callable or str, optional): A class or callable that makes the kernel branch's normalisation from
            its number of channels, such as ``nn.SyncBatchNorm`` or ``functools.partial(nn.GroupNorm, 4)``. ``"batch"``
            is batch normalisation of as many axes as the layer has. None leaves it out, and ``reduce`` then has a bias.
            Default: ``"batch"``
        activation_layer (callable, optional): A class or callable that makes the kernel branch's activation. None
            leaves it out. Default: ``nn.ReLU``
        kernel_normalizer (callable or str, optional): ``"softmax"`` over the points of a kernel, as in CARAFE and
            DynamicConv, or a callable that takes ``(B, G, KH*KW, Hout, Wout)`` and keeps the shape. It may be a module,
            but not a module's class. Default: None
        bias (bool): Whether ``span`` has a bias, the part of the kernels that all positions share. Default: True
        fused (bool, optional): Whether ``span`` and the involution run as one kernel, which does not write the kernels
            to memory and makes them again in the backward pass. True demands it and False forbids it. None takes it
            where it exists; :meth:`fused_available` says where, and why not. Results differ by rounding only. Default:
            None
        device (torch.device or str, optional): Where the parameters are made. Default: torch's default device
        dtype (torch.dtype, optional): Type of the parameters. Default: torch's default dtype

    Attributes:
        reduce (nn.Module): 1x1 convolution to the kernel branch's channels.
        norm (nn.Module or None): The normalisation.
        activation (nn.Module or None): The activation.
        span (nn.Module): 1x1 convolution to ``G * KH*KW`` channels, in this order, row-major.
        project (nn.Module or None): 1x1 convolution to ``out_channels``.
        pool (nn.Module or None): The average pool.
        fused (bool or None): As given. It may be changed.
        epilogue (nn.Module or None): The norm and ReLU that follow the layer, if :func:`involution.models.fuse` has
            put them into it.

    Shape:
        ``(B, channels, H, W)`` to ``(B, out_channels, Hout, Wout)``, in the memory format of the input, and in its
        dtype except under autocast.

    Raises:
        ValueError: If an argument is out of range; the message says which.
        TypeError: If an argument has the wrong type.

    Example:
        >>> Involution2d(64, kernel_size=7, stride=2)(torch.randn(2, 64, 56, 55)).shape
        torch.Size([2, 64, 28, 28])
    """

    axes = 2


@like_2d(Involution2d)
class Involution1d(_Involution):
    """Applies a 1D involution, of a sequence; :class:`Involution2d` with one axis.

    Example:
        >>> Involution1d(64, kernel_size=7, stride=2)(torch.randn(2, 64, 101)).shape
        torch.Size([2, 64, 51])
    """

    axes = 1


@like_2d(Involution2d)
class Involution3d(_Involution):
    """Applies a 3D involution, of a volume; :class:`Involution2d` with three axes.

    Example:
        >>> Involution3d(32, kernel_size=(1, 3, 3), stride=(1, 2, 2))(torch.randn(2, 32, 4, 9, 8)).shape
        torch.Size([2, 32, 4, 5, 4])
    """

    axes = 3
