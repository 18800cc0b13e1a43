"""Learned upsampling by the transpose of involution, with kernels made from the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .. import _arguments, _tracing
from .._docstrings import like_2d
from ._shared import RELU, ActivationLayer, NormLayer, check_map, per_axis_text
from .kernel_branch import KernelBranch, KernelNormalizer, factory_arguments


class _InvolutionTranspose(KernelBranch):
    """Everything about the layers but the number of axes; :class:`InvolutionTranspose2d` documents it."""

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 4,
        stride: int | Sequence[int] = 2,
        padding: int | Sequence[int] | str = "same",
        output_padding: int | Sequence[int] = 0,
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
        self.output_padding = _arguments.per_axis(output_padding, self.axes, "output_padding", 0)
        if padding == "same":
            if any(self.output_padding):
                raise ValueError(
                    f'padding="same" fixes the output size, but output_padding is {output_padding!r}.'
                )
        amount = self._same_padding(dilation) if padding == "same" else padding
        window = _arguments.complete_window(self.axes, self.kernel_size, 1, amount, dilation)
        self.padding = padding if isinstance(padding, str) else window.padding
        self.dilation = window.dilation
        self._window = window._replace(stride=self.stride)

    def _same_padding(self, dilation: int | Sequence[int]) -> tuple[int, ...]:
        """The outputs that are left out in front; of an odd number in all, one more is left out behind."""
        paddings = []
        dilations = _arguments.per_axis(dilation, self.axes, "dilation", 1)
        for size, step, stride in zip(self.kernel_size, dilations, self.stride, strict=True):
            reach = step * (size - 1) + 1
            if reach < stride:
                raise ValueError(
                    f'padding="same" needs kernels that leave no gap, but a kernel of size {self.kernel_size} with '
                    f"dilation {dilations} spans less than the stride {self.stride}."
                )
            paddings.append((reach - stride) // 2)
        return tuple(paddings)

    def forward(self, input: Tensor) -> Tensor:
        """Runs the layer.

        Args:
            input (Tensor): ``(B, channels, *In)``.

        Returns:
            ``(B, out_channels, *Out)``.

        Raises:
            ValueError: ``input`` has the wrong shape, or nothing remains of the output.
            RuntimeError: from the convolutions, for a dtype or device that is not the parameters'.
        """
        check_map(input, "input", self.channels, self.axes)
        kernels = self.kernels(self.hidden(input))
        values = self.values(input)
        window = (self.stride, self._window.padding, self.dilation)
        output_size = _output_size(input, self._window, self.output_padding, self.padding == "same")
        return _tracing.involution_transpose(values, kernels, output_size, *window)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        parts = [*self._repr_parts(), f"stride={per_axis_text(self.stride)}"]
        if max(self.dilation) > 1:
            parts.append(f"dilation={per_axis_text(self.dilation)}")
        if self.padding != "same":
            parts += [f"padding={self.padding!r}", f"output_padding={per_axis_text(self.output_padding)}"]
        return ", ".join(parts)


@fx.wrap
def _output_size(
    input: Tensor, window: _arguments.Window, output_padding: Sequence[int], same: bool
) -> tuple[int, ...]:
    size = _tracing.shape(input)[2:]
    if same:
        return tuple(length * stride for length, stride in zip(size, window.stride, strict=True))
    return _arguments.transposed_size(size, window, output_padding)


class InvolutionTranspose2d(_InvolutionTranspose):
    """Applies a 2D transposed involution whose kernels are made from the input: a learned, content-aware upsampling.

    ::

        kernels = normalise(span(activation(norm(reduce(input)))))             (B, G, KH, KW, H, W)
        output  = involution_transpose2d(project(input), kernels, stride, ...) (B, out_channels, Hout, Wout)

    It is to :class:`Involution2d` what ``ConvTranspose2d`` is to ``Conv2d``: the adjoint of Li et al., CVPR 2021,
    section 3, with the kernel branch from there. Along each axis
    ``Out = (In - 1)*stride - 2*padding + dilation*(K - 1) + output_padding + 1``. ``padding="same"`` cuts off
    ``dilation*(K - 1) + 1 - stride`` positions in all, an odd one at the end, so that ``Out = In * stride``.

    Args:
        channels (int): Channels of the input.
        kernel_size (int or tuple of int): Size of the kernels. A multiple of the stride covers every output equally
            often. Default: 4
        stride (int or tuple of int): The factor of upsampling: output positions from one input position's window to
            the next. Default: 2
        padding (int, tuple of int or str): Output positions that are cut off on both sides, or ``"same"`` as above;
            ``"valid"`` is 0. Default: ``"same"``
        output_padding (int or tuple of int): Output positions that are added at the end of each axis, fewer than the
            stride or the dilation. Default: 0
        dilation (int or tuple of int): Step from one kernel point to the next. Default: 1
        group_channels (int, optional): How many output channels share a kernel. If there are fewer, all of them do.
            Default: 16, unless ``groups`` is given
        reduction_ratio (int): The kernel branch has ``channels // reduction_ratio`` channels, at least one. Default: 4
        groups (int, optional): The number of groups ``G``, in place of ``group_channels``. If both are given, they must
            agree. Default: None
        out_channels (int, optional): Channels of the output. Default: ``channels``
        norm_layer (callable or str, optional): As in :class:`Involution2d`. Default: ``"batch"``
        activation_layer (callable, optional): As in :class:`Involution2d`. Default: ``nn.ReLU``
        kernel_normalizer (callable or str, optional): As in :class:`Involution2d`. Default: None
        bias (bool): Whether ``span`` has a bias. Default: True
        device (torch.device or str, optional): Where the parameters are made. Default: torch's default device
        dtype (torch.dtype, optional): Type of the parameters. Default: torch's default dtype

    Shape:
        ``(B, channels, H, W)`` to ``(B, out_channels, Hout, Wout)``.

    Raises:
        ValueError: If an argument is out of range; the message says which.
        TypeError: If an argument has the wrong type.

    Example:
        >>> InvolutionTranspose2d(64)(torch.randn(2, 64, 14, 13)).shape
        torch.Size([2, 64, 28, 26])
    """

    axes = 2


@like_2d(InvolutionTranspose2d)
class InvolutionTranspose1d(_InvolutionTranspose):
    """Applies a 1D transposed involution, to a sequence; :class:`InvolutionTranspose2d` with one axis.

    Example:
        >>> InvolutionTranspose1d(64)(torch.randn(2, 64, 25)).shape
        torch.Size([2, 64, 50])
    """

    axes = 1


@like_2d(InvolutionTranspose2d)
class InvolutionTranspose3d(_InvolutionTranspose):
    """Applies a 3D transposed involution, to a volume; :class:`InvolutionTranspose2d` with three axes.

    Example:
        >>> InvolutionTranspose3d(32, kernel_size=(1, 2, 2), stride=(1, 2, 2))(torch.randn(2, 32, 3, 4, 5)).shape
        torch.Size([2, 32, 3, 8, 10])
    """

    axes = 3
