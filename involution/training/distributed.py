"""One process, or several started by ``torchrun``: who is who, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import Config


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: this one, from 0.
        size: how many there are.
        device: where this one computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' tensors, the same on all of them."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all(self, flag: bool) -> bool:
        """Whether it is true of every process."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag), device=self.device)) == self.size)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their ranks, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Gives all processes the first one's values, such as the running statistics of its norms."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with gradients averaged over the processes where there are several."""
        if self.size == 1:
            return model
        on_gpu = self.device.type == "cuda"
        return nn.parallel.DistributedDataParallel(model, [self.device.index] if on_gpu else None)


@contextlib.contextmanager
def processor_threads(config: Config) -> Iterator[None]:
    """Computes with the configured number of threads inside, and with as many as before afterwards.

    By default one for digits: on their small images a second gains nothing (1.1 s an epoch with one as with two), and
    where another program has the core, threads that wait for each other take fifty times as long. The number is part
    of the configuration also because sums of several threads round differently.

    Args:
        config: ``threads`` and ``data`` are read.
    """
    before = torch.get_num_threads()
    count = config.threads or (1 if config.data == "digits" else before)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that a name stands for.

    Args:
        name: ``"cpu"``, ``"cuda"``, or ``"auto"``, which is a GPU where there is one.
        local_rank: which of the machine's processes asks; each has its own GPU.

    Raises:
        RuntimeError: a GPU is asked for and there is none, or there are fewer than processes.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "The device is to be cuda, but this torch sees no CUDA device; give --device cpu or auto."
        )
    if local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"Process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}."
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Joins the processes that ``torchrun`` started, or stands alone where it did not.

    ``torchrun`` tells a process by environment variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ...) what it is.
    GPUs talk through NCCL, processors through gloo. A group that exists already is used and left as it is.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
        return
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes(0, 1, chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()
