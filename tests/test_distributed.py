"""Data-parallel training in two processes agrees with training in one.

Each process takes half of every batch. Normalisations are fixed, so that a gradient is a mean over samples, and the
mean of the processes' means is that of one process, up to rounding.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from involution import InvolutionLayer
from involution.models import RedNet

PROCESSES = 2
STEPS = 3

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"
)


def small_rednet() -> RedNet:
    torch.manual_seed(0)
    model = RedNet(
        (1, 1), widths=(16, 32), strides=(1, 2), stem="small", stem_channels=16, expansion=2, num_classes=3
    ).double()
    model(torch.randn(8, 3, 8, 8, dtype=torch.float64))  # running statistics to fix
    model.freeze_norms()
    return model


def train(model: nn.Module, rank: int = 0, processes: int = 1) -> list[float]:
    """The losses of this process's share of the batches."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(STEPS):
        images = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(3, (8,), generator=generator)
        loss = F.cross_entropy(model(images.chunk(processes)[rank]), labels.chunk(processes)[rank])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, gathered from all processes."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }


def data_parallel() -> tuple[nn.Module, nn.Module]:
    model = small_rednet()
    return DistributedDataParallel(model), model


def fully_sharded() -> tuple[nn.Module, nn.Module]:
    from torch.distributed.fsdp import fully_shard

    model = small_rednet()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for stage in model.stages:
        for block in stage:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(
        isinstance(p, DTensor) and p.to_local().numel() < p.numel() for p in model.stages[0].parameters()
    )
    return model, model


def small_layer() -> nn.Module:
    torch.manual_seed(0)
    layer = InvolutionLayer(3, 8, 3, padding=1, groups=2, dtype=torch.float64)
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3, dtype=torch.float64))


def sharded_convolution() -> tuple[nn.Module, nn.Module]:
    """The layer's convolution by itself: its weight is whole in its own forward alone."""
    from torch.distributed.fsdp import fully_shard

    model = small_layer()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    fully_shard(model[0].conv, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh)
    return model, model


# How a model is spread, and the model as one process has it.
WAYS = {
    "DistributedDataParallel": (data_parallel, small_rednet),
    "fully_shard": (fully_sharded, small_rednet),
    "fully_shard of a convolution": (sharded_convolution, small_layer),
}


def work(rank: int, folder: str) -> None:
    """What one process does; it leaves what came out in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    try:
        results = {}
        for name, (wrap, _) in WAYS.items():
            wrapped, model = wrap()
            results[name] = {"losses": train(wrapped, rank, PROCESSES), "state": whole(model)}
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What every process found; starting them is what takes the time, so all tests share it."""
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_agree_with_one(way: str, results: list[dict]) -> None:
    model = WAYS[way][1]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = train(model)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for rank in range(PROCESSES):
        torch.testing.assert_close(
            results[rank][way]["state"], dict(model.state_dict()), rtol=1e-9, atol=1e-12
        )
    shares = [results[rank][way]["losses"] for rank in range(PROCESSES)]
    torch.testing.assert_close([sum(step) / PROCESSES for step in zip(*shares, strict=True)], losses)
    assert shares[0] != shares[1]
