"""RedNet in training: gradient checkpointing, frozen stages and norms, drop path."""

from __future__ import annotations

import copy

import pytest
import torch
from hooks import gradients_of, hooked
from small_models import step, tiny
from torch import Tensor, nn

from involution.models import FeaturePyramid
from involution.models.blocks import DropPath


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(drop_path=0.5),
        lambda: tiny(drop_path=0.5).eval(),
        lambda: nn.Sequential(
            tiny(features_only=True), FeaturePyramid((64, 128), 16, neck="involution", extra_levels=2)
        ),
    ],
    ids=["training", "evaluation", "pyramid"],
)
@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # of modules that return lists
def test_hooks_see_what_stays(make):
    model, x = make(), torch.randn(2, 3, 32, 32, requires_grad=True)
    results = []
    for run in (gradients_of, hooked):
        torch.manual_seed(1)
        results.append(run(copy.deepcopy(model), x))
    torch.testing.assert_close(results[1], results[0])


def test_extra_levels_are_not_parts_of_others():
    pyramid = FeaturePyramid((8,), 16, extra_levels=2)
    levels = pyramid([torch.randn(1, 8, 5, 7)])
    before = [level.detach().clone() for level in levels]
    levels[1].fill_(3.0)
    assert torch.equal(levels[0], before[0]) and torch.equal(levels[2], before[2])
    assert torch.equal(before[1], before[0][:, :, ::2, ::2])


class Stateful(nn.Module):
    """A norm of one's own, whose result depends on what it has seen before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean.lerp_(x.detach().mean((0, 2, 3)), 1 / (1 + self.calls.item()))
        return (x - self.mean.clone()[:, None, None]) * self.weight[:, None, None]


NORMS = {
    "batch": "batch",
    "cumulative": lambda channels: nn.BatchNorm2d(channels, momentum=None),
    "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
    "synchronised": nn.SyncBatchNorm,
    "stateful": Stateful,
}


@pytest.mark.parametrize(
    ("drop_path", "norm"), [(0.0, "batch"), (0.5, "batch"), *((0.0, name) for name in [*NORMS][1:])]
)
def test_gradient_checkpointing_changes_nothing_but_memory(drop_path, norm):
    model, x = tiny(drop_path=drop_path, norm_layer=NORMS[norm]), torch.randn(4, 3, 32, 32)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    results, saved = [], []
    for each in (model, other):
        sizes: list[int] = []
        pack = lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1]  # noqa: E731
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            results.append(step(each, x))
        saved.append(sum(sizes))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    buffers = zip(model.named_buffers(), other.named_buffers(), strict=True)
    for (name, a), (_, b) in buffers:  # running statistics count the batch once
        assert torch.equal(a, b), name
        assert b.any() or "mean" not in name, "the statistics were not taken"
    other.set_grad_checkpointing(False)
    assert not other.grad_checkpointing


def test_gradient_checkpointing_goes_back_twice():
    """A graph that is kept computes its blocks again each time."""
    model, x = tiny(norm_layer=Stateful), torch.randn(2, 3, 32, 32)
    model.set_grad_checkpointing()
    loss = model(x).square().mean()
    before = copy.deepcopy(dict(model.named_buffers()))
    weights = [block.norm1.weight for stage in model.stages for block in stage]
    first, second = (torch.autograd.grad(loss, weights, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)


def test_gradient_checkpointing_keeps_less():
    model, x = tiny(), torch.randn(2, 3, 64, 64)
    kept = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen=seen) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        block = model.stages[1]
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model(x)
        kept.append(len(seen))
        del output, block
    assert kept[1] < kept[0] / 2


def test_frozen_stages_stay_frozen():
    model, x = tiny(), torch.randn(4, 3, 32, 32)
    model.freeze_stages(1)
    before = copy.deepcopy(model.state_dict())
    model.train()
    gradients = step(model, x)
    assert not any(name.startswith(("stem.", "stages.0.")) for name in gradients)
    assert {name for name, _ in model.named_parameters() if name.startswith(("stages.1.", "head."))} == set(
        gradients
    )
    for name, tensor in model.state_dict().items():
        if name.startswith(("stem.", "stages.0.")):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.stages[1][0].norm1.running_mean, before["stages.1.0.norm1.running_mean"])

    model.freeze_stages(0)
    assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"stem"}
    model.freeze_stages(-1)
    assert len(step(model.train(), x)) == len(list(model.parameters()))
    assert all(module.training for module in model.modules())


def test_frozen_norms_stay_frozen():
    model, x = tiny(), torch.randn(4, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.weight, 0.5, 1)
    model.freeze_norms()
    model.train()
    expected = copy.deepcopy(model).eval()(x)
    assert torch.equal(model(x), expected)
    before = copy.deepcopy(model.state_dict())
    gradients = step(model, x)
    assert gradients and not any("norm" in name for name in gradients)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.freeze_stages(1)
    model.freeze_stages(-1)
    assert not any("norm" in name for name in step(model, x))
    model.freeze_stages(1)
    model.freeze_norms(False)
    assert not any(p.requires_grad for p in model.stages[0].parameters())
    assert all(p.requires_grad for p in model.stages[1].parameters())
    assert model.train().stages[1][0].norm1.training and not model.stages[0][0].norm1.training


def test_drop_path():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 1, 1)
    y = drop(x)
    kept = y[:, 0, 0, 0] > 0
    assert torch.equal(y[:, 0], y[:, 1])
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 4 / 3))
    assert torch.equal(drop.eval()(x), x)
    rates = [b.drop_path.probability if b.drop_path else 0 for s in tiny(drop_path=0.2).stages for b in s]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_dropout_is_in_the_head():
    model, x = tiny(dropout=0.5), torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    assert torch.equal(model.eval().forward_head(features), model.forward_head(features))
