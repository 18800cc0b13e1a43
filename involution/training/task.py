"""What a network is trained for: the part that all tasks share, and classification."""

import random
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR

from ..models import create_model
from .checkpoint import VERSION
from .images import DataError
from .libraries import lightning, torchmetrics
from .loading import Batch


class NonFiniteError(FloatingPointError):
    """The loss or its gradient is not finite."""


class Task(lightning.LightningModule):
    """A network, its optimiser and its schedule.

    A kind of task has three methods: ``loss`` of a training batch, a mean over its images; ``measure``, which takes a
    test batch into the scores; and ``scores``, by names that begin with ``val_``, after which they begin anew.

    The learning rate is a cosine that falls with every step (Loshchilov and Hutter, "SGDR", ICLR 2017, without
    restarts), times a linear warm-up (Goyal et al., "Accurate, Large Minibatch SGD", 2017)::

        rate(t) = lr * (1 + cos(pi * t / steps)) / 2 * (factor + (1 - factor) * min(1, t / warmup))

    Args:
        data: what the data is (``ImageData.description``).
        network: name of the network, one of involution.models.list_models().
        network_arguments: more arguments of the network, such as drop_path.
        optimizer: class of torch.optim with its arguments; lr is the learning rate at its peak. Another class keeps lr
            and weight_decay of the default where none are given.
        warmup_epochs: epochs in which the learning rate rises to the cosine, at most a quarter of all.
        warmup_factor: what it begins with, as a share above 0.
        decay_all: let weight decay pull at biases and norms, too, which only lose their scale by it.
        channels_last: store images and weights as channels_last.
        compile: compile the network by torch.compile.
        seed: of what is random in a step, such as dropout.
    """

    monitor: ClassVar[tuple[str, str]]  # the score by which the best checkpoint is chosen, and "max" or "min"
    loss: Callable[[Batch], Tensor]
    measure: Callable[[Batch], None]
    scores: Callable[[], dict[str, Tensor]]

    def __init__(
        self,
        data: dict[str, Any],
        network: str = "rednet_tiny",
        network_arguments: dict[str, Any] | None = None,
        optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(
            p, lr=6e-3, weight_decay=0.05
        ),
        warmup_epochs: float = 2.0,
        warmup_factor: float = 0.01,
        decay_all: bool = False,
        channels_last: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data, self.optimizer, self.decay_all = data, optimizer, decay_all
        self.compiled, self.seed = compile, seed
        self.warmup_epochs, self.warmup_factor, self.steps = warmup_epochs, warmup_factor, 0
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        sizes = {"num_classes": len(data["classes"]), "in_channels": data["input"]["channels"]}
        self.model: dict[str, Any] = {"name": network, "arguments": {**sizes, **(network_arguments or {})}}
        self.network: nn.Module = create_model(network, **self.model["arguments"])
        self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        # Of the epoch so far, over all processes; a checkpoint has them.
        self.means: Any = nn.ModuleDict({"skipped_images": torchmetrics.SumMetric()})
        for name in ("train_loss", "grad_norm"):
            self.means[name] = torchmetrics.MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """What the network makes of images ``(B, C, H, W)``, in float32 at least, which a loss needs."""
        result = self.network(images.to(memory_format=self.memory_format))
        return result.to(torch.promote_types(result.dtype, torch.float32))

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
        schedules: list[Any] = [CosineAnnealingLR(optimizer, steps)]
        if warmup > 0:
            schedules.append(LinearLR(optimizer, self.warmup_factor, total_iters=warmup))
        schedule = {"scheduler": ChainedScheduler(schedules), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

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
            size = " x ".join(map(str, batch.images.shape[2:]))
            raise DataError(
                "Batch norm needs more than one value for each channel, but this network makes 1 x 1 maps of a single "
                f"image of {size}: give a larger --data.batch_size or larger images."
            ) from error
        self._stop_unless_finite(loss, "loss")
        self.means["train_loss"].update(loss.detach(), len(batch.images))
        self.log("loss", loss.detach(), prog_bar=True)
        self.log_dict(dict(self.means), on_step=False, on_epoch=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        if (
            getattr(self.trainer.precision_plugin, "scaler", None) is None
        ):  # float16's leaves out such steps itself
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
        self.measure(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.scores(), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        own = {"version": VERSION, "task": type(self).__name__, "model": self.model, "metrics": metrics}
        checkpoint["involution"] = {
            **own,
            **self.data,
            "precision": self.trainer.precision,
            "steps": self.steps,
        }
        weights = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name.removeprefix("network."): weight for name, weight in weights}
        checkpoint["means"] = {}
        for name, mean in self.means.items():
            with mean.sync_context():  # the sum over all processes
                checkpoint["means"][name] = {key: value.clone() for key, value in mean.metric_state.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for key in ("classes", "input"):
            if (before := checkpoint["involution"][key]) != self.data[key]:
                raise DataError(
                    f"The run began with other data: its {key} were {before}, now {self.data[key]}."
                )
        self.steps = checkpoint["involution"]["steps"]
        weights = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {f"network.{name}": weight for name, weight in weights}
        for name, state in checkpoint["means"].items() if self.global_rank == 0 else ():
            for key, value in state.items():
                setattr(self.means[name], key, value.to(self.device))


class Classification(Task):
    """One class for each image.

    Args:
        data: what the data is (``ImageData.description``).
        label_smoothing: share of each label that goes to all classes (Szegedy et al., CVPR 2016, section 7).
    """

    monitor = ("val_accuracy", "max")

    def __init__(self, data: dict[str, Any], label_smoothing: float = 0.1, **common: Any) -> None:
        super().__init__(data, **common)
        self.label_smoothing = label_smoothing
        self.means["train_accuracy"] = torchmetrics.MeanMetric()
        kinds = torchmetrics.classification
        options: dict[str, Any] = {"num_classes": len(data["classes"]), "validate_args": False}
        accuracy = kinds.MulticlassAccuracy(average="micro", **options)
        confusion = kinds.MulticlassConfusionMatrix(**options)
        self.tests: Any = nn.ModuleDict(
            {"accuracy": accuracy, "confusion": confusion, "loss": torchmetrics.MeanMetric()}
        )

    def loss(self, batch: Batch) -> Tensor:
        scores = self(batch.images)
        self.means["train_accuracy"].update((scores.argmax(1) == batch.targets).float())
        return F.cross_entropy(scores, batch.targets, label_smoothing=self.label_smoothing)

    def measure(self, batch: Batch) -> None:
        if len(batch.targets):
            scores = self(batch.images)
            self.tests["loss"].update(F.cross_entropy(scores, batch.targets, reduction="none"))
            self.tests["accuracy"].update(scores, batch.targets)
            self.tests["confusion"].update(scores, batch.targets)

    def scores(self) -> dict[str, Tensor]:
        found = {f"val_{name}": metric.compute() for name, metric in self.tests.items()}
        for metric in self.tests.values():
            metric.reset()
        self.confusion: Tensor = found.pop("val_confusion").cpu()  # (N, N) counts, true classes by row
        if not self.confusion.any():
            raise DataError("No test image can be read.")
        return found
