"""What a network is trained for: the part that all tasks share."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, MultiStepLR, PolynomialLR

from .checkpoint import VERSION, create_network
from .images import DataError
from .libraries import lightning, torchmetrics
from .loading import Batch


class NonFiniteError(FloatingPointError):
    """The loss or its gradient is not finite."""


class Task(lightning.LightningModule):
    """A network, its optimiser and its schedule.

    A kind of task has four methods: ``loss`` of a training batch, a mean over its images; ``measure``, which takes a
    test batch of one image or more into the scores; ``scores``, by names that begin with ``val_``, after which they
    begin anew; and ``report``, which writes pictures of the last test into a folder and returns what to print.

    The learning rate changes with every step. It is a schedule times a linear warm-up (Goyal et al., "Accurate, Large
    Minibatch SGD", 2017), ``rate(t) = lr * schedule(t) * (factor + (1 - factor) * min(1, t / warmup))``, where
    ``schedule(t)`` is::

        cosine      (1 + cos(pi * t / steps)) / 2    Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts
        steps       a tenth of it after each milestone
        polynomial  (1 - t / steps) ** 0.9           Chen et al., "DeepLab", PAMI 2018

    Args:
        data: what the data is (``ImageData.description``).
        network: name of the network: one of involution.models.list_models(), or a function of involution.detection or
            involution.segmentation, whichever the task is.
        network_arguments: more arguments of the network, such as drop_path.
        optimizer: class of torch.optim with its arguments; lr is the learning rate at its peak. Another class keeps lr
            and weight_decay of the default where none are given.
        schedule: schedule of the learning rate: cosine, steps or polynomial.
        milestones: epochs after which "steps" divides it by 10.
        warmup_epochs: epochs in which the learning rate rises to the schedule, at most a quarter of all.
        warmup_factor: what it begins with, as a share above 0.
        decay_all: let weight decay pull at biases and norms, too, which only lose their scale by it.
        channels_last: store images and weights as channels_last.
        compile: compile the network by torch.compile.
        seed: seed of what is random in a step, such as dropout.
    """

    monitor: ClassVar[tuple[str, str]]  # the score by which the best checkpoint is chosen, and "max" or "min"
    loss: Callable[[Batch], Tensor]
    measure: Callable[[Batch], None]
    scores: Callable[[], dict[str, Tensor]]
    report: Callable[[Path], str]

    def __init__(
        self,
        data: dict[str, Any],
        network: str = "rednet_tiny",
        network_arguments: dict[str, Any] | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(
            p, lr=6e-3, weight_decay=0.05
        ),
        schedule: Literal["cosine", "steps", "polynomial"] = "cosine",
        milestones: tuple[float, ...] = (8, 11),
        warmup_epochs: float = 2.0,
        warmup_factor: float = 0.01,
        decay_all: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data, self.optimizer, self.decay_all = data, optimizer, decay_all
        self.compiled, self.seed, self.schedule, self.milestones = compile, seed, schedule, milestones
        self.warmup_epochs, self.warmup_factor, self.steps = warmup_epochs, warmup_factor, 0
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        arguments = {**self.sizes(), **(network_arguments or {})}
        self.network: nn.Module = create_network(network, **arguments)
        arguments.pop("weights_backbone", None)  # a checkpoint has them
        self.model: dict[str, Any] = {"name": network, "arguments": arguments}
        self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        means = {name: torchmetrics.MeanMetric() for name in ("train_loss", "grad_norm")}
        # Of the epoch so far, over all processes; a checkpoint has them.
        self.means: Any = nn.ModuleDict({"skipped_images": torchmetrics.SumMetric(), **means})

    def sizes(self) -> dict[str, Any]:
        """The network's arguments that follow from the data."""
        return {"num_classes": len(self.data["classes"]), "in_channels": self.data["input"]["channels"]}

    def configure_optimizers(self) -> Any:
        # Biases and everything with at most one axis, as norms have, do not decay (He et al., "Bag of Tricks", 2019).
        groups: tuple[dict[str, Any], ...] = ({"params": []}, {"params": [], "weight_decay": 0.0})
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                spared = not self.decay_all and (parameter.ndim <= 1 or name.endswith("bias"))
                groups[spared]["params"].append(parameter)
        optimizer = self.optimizer([group for group in groups if group["params"]])
        steps, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or 1
        if self.steps not in (0, steps):
            raise DataError(f"The run has {self.steps} steps; with {steps}, its rates would be others.")
        self.steps = steps
        warmup = round(min(self.warmup_epochs, epochs / 4) * steps / epochs)
        schedules: list[Any] = [
            CosineAnnealingLR(optimizer, steps)
            if self.schedule == "cosine"
            else PolynomialLR(optimizer, steps, 0.9)
            if self.schedule == "polynomial"
            else MultiStepLR(optimizer, [round(epoch * steps / epochs) for epoch in self.milestones])
        ]
        if warmup > 0:
            schedules.append(LinearLR(optimizer, self.warmup_factor, total_iters=warmup))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ChainedScheduler(schedules), "interval": "step"},
        }

    def on_fit_start(self) -> None:
        if self.compiled:
            self.network.compile()  # in place, so that its names stay

    def on_train_epoch_start(self) -> None:  # not called where a run goes on within an epoch
        for mean in self.means.values():
            mean.reset()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        # The random numbers of a step follow from seed, step and process, so that they need no checkpoint.
        words = f"{self.seed}/{self.trainer.current_epoch}/{index}/{self.global_rank}"
        lightning.seed_everything(random.Random(words).getrandbits(32), verbose=False)

    def _count_skipped(self, batch: Batch) -> None:
        self.means["skipped_images"].update(len(batch.skipped))
        if batch.skipped:
            warnings.warn(f"{len(batch.skipped)} image(s) skipped; one: {batch.skipped[0]}", stacklevel=2)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        self._count_skipped(batch)
        try:
            loss = self.loss(batch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            size = " x ".join(map(str, batch.images[0].shape[1:]))
            raise DataError(
                f"Batch norm needs more than one value for each channel, but of a single image of {size} this network "
                "makes 1 x 1 maps: give a larger --data.batch_size or larger images."
            ) from error
        self._stop_unless_finite(loss, "loss")
        self.means["train_loss"].update(loss.detach(), len(batch.images))
        self.log("loss", loss.detach(), prog_bar=True)
        self.log_dict(dict(self.means), on_step=False, on_epoch=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not scaled:  # a scaler leaves out such steps itself
            self._stop_unless_finite(norm, "norm of the gradient")
        if torch.isfinite(norm):
            self.means["grad_norm"].update(norm)

    def _stop_unless_finite(self, value: Tensor, name: str) -> None:
        if not torch.isfinite(value):
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise NonFiniteError(
                f"The {name} ({value.item():g}) is not finite at epoch {self.current_epoch + 1}, step "
                f"{self.global_step + 1}. The learning rate is {rate:g}: try a lower --model.optimizer.lr, a longer "
                "--model.warmup_epochs or a lower --trainer.gradient_clip_val."
            )

    def on_validation_epoch_start(self) -> None:
        # All processes get the first one's running statistics of norms, which are what a checkpoint has.
        for buffer in self.network.buffers() if self.trainer.world_size > 1 else ():
            torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, index: int) -> None:
        self._count_skipped(batch)
        if len(batch.targets):  # none where no image can be read
            self.measure(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.scores(), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        own = {"version": VERSION, "task": type(self).__name__, "model": self.model, "metrics": metrics}
        own |= {"precision": self.trainer.precision, "steps": self.steps}
        checkpoint["involution"] = {**own, **self.data}
        weights = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name.removeprefix("network."): weight for name, weight in weights}
        checkpoint["means"] = {}
        for name, mean in self.means.items():
            with mean.sync_context():  # the sum over all processes
                checkpoint["means"][name] = {key: value.clone() for key, value in mean.metric_state.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for key in ("classes", "input"):
            if (before := checkpoint["involution"][key]) != self.data[key]:
                now = self.data[key]
                raise DataError(f"The run began with other data: its {key} were {before}, now {now}.")
        self.steps = checkpoint["involution"]["steps"]
        weights = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {f"network.{name}": weight for name, weight in weights}
        for name, state in checkpoint["means"].items() if self.global_rank == 0 else ():
            for key, value in state.items():
                setattr(self.means[name], key, value.to(self.device))
