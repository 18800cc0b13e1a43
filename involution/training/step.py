"""One step of training: gradients of a number of batches, clipping, and the optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Batch
from .distributed import Processes
from .ema import ExponentialMovingAverage
from .precision import Precision, at_least_float32
from .schedule import CosineSchedule


class NonFiniteError(FloatingPointError):
    """The loss or its gradient is not finite, and not for the first time where some such steps are allowed."""


class StepResult(NamedTuple):
    """What a step found: sums over this process's images, the gradient's norm, and whether it was taken."""

    loss: float
    correct: float
    images: int
    gradient_norm: float
    taken: bool


class Stepper:
    """Takes steps, the same ones whatever number of processes and batches they are cut into.

    The gradient is that of the mean loss over all images of the step; batch norm alone sees each batch by itself.

    Args:
        model: what is trained.
        runner: what is called: the model, or what wraps it for several processes or compiles it.
        optimizer: changes the parameters.
        schedule: sets the learning rate.
        precision: mixed precision.
        processes: who trains together.
        ema: moving average of the weights, if any.
        label_smoothing: of the cross entropy (Szegedy et al., CVPR 2016, section 7).
        clip_grad_norm: largest norm of the gradient, if any (Pascanu et al., ICML 2013).
        skip_non_finite: how many steps in a row may be left out because the loss or gradient is not finite.
        channels_last: whether the images are stored so.
    """

    def __init__(
        self,
        model: nn.Module,
        runner: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: CosineSchedule,
        precision: Precision,
        processes: Processes,
        ema: ExponentialMovingAverage | None = None,
        label_smoothing: float = 0.0,
        clip_grad_norm: float | None = None,
        skip_non_finite: int = 0,
        channels_last: bool = False,
    ) -> None:
        self.model = model
        self.runner = runner
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.processes = processes
        self.ema = ema
        self.label_smoothing = label_smoothing
        self.clip_grad_norm = clip_grad_norm
        self.skip_non_finite = skip_non_finite
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.skipped_in_a_row = 0
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def gradients(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor, int]:
        """Adds up the gradient of the mean loss over all processes' batches.

        Args:
            batches: this process's, all of one size.

        Returns:
            The sum of the losses, how many images were classified right, and the number of images, of this process.
        """
        device = self.processes.device
        losses = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.float64, device=device)
        count = 0
        for number, batch in enumerate(batches):
            images = batch.images.to(device, memory_format=self.memory_format, non_blocking=True)
            labels = batch.labels.to(device, non_blocking=True)
            with self._alone() if number + 1 < len(batches) else contextlib.nullcontext():
                with self.precision.autocast():
                    scores = self.runner(images)
                    loss = F.cross_entropy(
                        at_least_float32(scores), labels, label_smoothing=self.label_smoothing
                    )
                self.precision.scaler.scale(loss / len(batches)).backward()
            losses += loss.detach() * len(labels)
            correct += (scores.detach().argmax(1) == labels).sum()
            count += len(labels)
        return losses, correct, count

    def _alone(self) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once, with the last batch; not in this context."""
        wrapped = getattr(self.runner, "_orig_mod", self.runner)  # torch.compile's module has the wrapped one
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def __call__(self, batches: Sequence[Batch], where: str) -> StepResult:
        """Takes a step.

        Args:
            batches: this process's.
            where: which step it is, for the message of an error.

        Raises:
            NonFiniteError: the loss or gradient is not finite, once too often.
        """
        scaler = self.precision.scaler
        kept = [buffer.clone() for buffer in self.model.buffers()] if self.skip_non_finite else []
        self.optimizer.zero_grad(set_to_none=True)
        losses, correct, count = self.gradients(batches)
        scaler.unscale_(self.optimizer)
        limit = self.clip_grad_norm if self.clip_grad_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        # float16's scaler expects gradients that are not finite now and then, and leaves out their steps itself.
        fine = torch.isfinite(losses) & (torch.isfinite(norm) | scaler.is_enabled())
        loss, right, size, finite = torch.stack([losses, correct, norm.double(), fine.double()]).tolist()
        taken = self.processes.all(bool(finite))
        if taken:
            self.skipped_in_a_row = 0
            scaler.step(self.optimizer)
            scaler.update()
            self.precision.check_scale()
            if self.ema is not None:
                self.ema.update(self.model, self.schedule.taken)
        else:
            self._skip(loss / count, size, where, kept)
        self.schedule.step()
        return StepResult(loss, right, count, size, taken)

    def _skip(self, loss: float, norm: float, where: str, kept: list[Tensor]) -> None:
        if self.skipped_in_a_row == self.skip_non_finite:
            also = f", and so were {self.skipped_in_a_row} before" if self.skipped_in_a_row else ""
            raise NonFiniteError(
                f"The loss ({loss:g}) or the norm of its gradient ({norm:g}) is not finite at {where}{also}. The "
                f"learning rate is {self.schedule.rate:g}: try a lower --lr, a longer --warmup-epochs or a lower "
                "--clip-grad-norm; --skip-non-finite N leaves out up to N such steps in a row."
            )
        self.skipped_in_a_row += 1
        if self.precision.scaler.is_enabled():
            self.precision.scaler.update()
        for buffer, value in zip(
            self.model.buffers(), kept, strict=True
        ):  # running statistics may have it, too
            buffer.copy_(value)
