"""The parts of a training step, each against its definition."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from involution.models import create_model
from involution.training.config import Config
from involution.training.data import Batch
from involution.training.distributed import Processes, choose_device
from involution.training.ema import ExponentialMovingAverage
from involution.training.optimizer import make_optimizer, parameter_groups
from involution.training.precision import Precision
from involution.training.progress import Progress, duration
from involution.training.schedule import CosineSchedule, learning_rate
from involution.training.step import NonFiniteError, Stepper

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


def make_stepper(model: nn.Module, **arguments) -> Stepper:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = CosineSchedule(optimizer, 10, 0.1)
    return Stepper(model, model, optimizer, schedule, Precision("float32", CPU), ALONE, **arguments)


def make_batch(count: int = 6, classes: int = 3, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 2, 4, 4, generator=generator, dtype=dtype)
    return Batch(images, torch.arange(count) % classes, [])


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).to(dtype)


# --- Learning rate ----------------------------------------------------------------------------------------


def test_the_schedule_rises_and_falls():
    rates = [learning_rate(step, 100, 0.8, 0.1, warmup=10, warmup_factor=0.25) for step in range(101)]
    assert rates[0] == pytest.approx(0.8 * 0.25)
    middle = 0.1 + 0.7 * (1 + math.cos(math.pi * 0.05)) / 2
    assert rates[5] == pytest.approx(middle * (0.25 + 0.75 * 0.5))
    assert rates[50] == pytest.approx(0.45)
    assert rates[100] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_without_warmup_it_is_torchs_cosine():
    parameter = nn.Parameter(torch.zeros(1))
    ours, theirs = (torch.optim.SGD([parameter], lr=0.3) for _ in range(2))
    schedule = CosineSchedule(ours, 20, 0.3, 0.01)
    expected = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 20, 0.01)
    for _ in range(20):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
        theirs.step()
        schedule.step()
        expected.step()


def test_a_schedule_goes_on_where_it_was():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = CosineSchedule(optimizer, 20, 0.3, warmup=5)
    for _ in range(7):
        schedule.step()
    state, rate = schedule.state_dict(), optimizer.param_groups[0]["lr"]
    CosineSchedule(optimizer, 20, 0.3, warmup=5)
    assert optimizer.param_groups[0]["lr"] == 0
    again = CosineSchedule(optimizer, 20, 0.3, warmup=5)
    again.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == rate


# --- Parameters -------------------------------------------------------------------------------------------


def test_norms_and_biases_do_not_decay():
    model = create_model("rednet_tiny", num_classes=4, in_channels=1)
    decayed, kept = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    spared = set()
    for name, module in model.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d) or own == "bias":
                spared.add(f"{name}.{own}")
    identities = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {identities[id(parameter)] for parameter in kept["params"]} == spared
    assert {identities[id(parameter)] for parameter in decayed["params"]} == set(identities.values()) - spared
    (group,) = parameter_groups(model, 0.3, decay_all=True)
    assert len(group["params"]) == len(identities)


def test_frozen_parameters_are_left_out():
    model = make_model()
    model[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.1)) == 4


def test_optimizers():
    model = make_model()
    sgd = make_optimizer(
        model, Config(optimizer="sgd", lr=0.1, momentum=0.8, nesterov=False, weight_decay=0.2)
    )
    assert isinstance(sgd, torch.optim.SGD)
    first = sgd.param_groups[0]
    assert (first["lr"], first["momentum"], first["nesterov"], first["weight_decay"]) == (
        0.1,
        0.8,
        False,
        0.2,
    )
    assert isinstance(make_optimizer(model, Config()), torch.optim.AdamW)


def test_moving_average():
    model = nn.BatchNorm1d(3)
    average = ExponentialMovingAverage(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(20):
        nn.init.normal_(model.weight)
        model(torch.randn(4, 3))
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            mixed = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            )
            expected[name] = mixed
    torch.testing.assert_close(dict(average.module.state_dict()), expected)
    assert expected["num_batches_tracked"] == 20
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


# --- A step -----------------------------------------------------------------------------------------------


def test_a_step_is_that_of_the_mean_loss():
    batch, model = make_batch(), make_model()
    expected = copy.deepcopy(model)
    log_likelihood = expected(batch.images).log_softmax(1)
    wanted = 0.8 * F.one_hot(batch.labels, 3) + 0.2 / 3
    loss = -(wanted * log_likelihood).sum(1).mean()
    loss.backward()
    norm = math.sqrt(sum(p.grad.double().square().sum() for p in expected.parameters()))
    ema = ExponentialMovingAverage(model, 0.5)
    stepper = make_stepper(model, ema=ema, label_smoothing=0.2, clip_grad_norm=norm / 4)
    result = stepper([batch], "here")
    assert result.taken
    assert result.loss / 6 == pytest.approx(loss.item(), rel=1e-5)
    assert result.gradient_norm == pytest.approx(norm, rel=1e-5)
    assert result.correct == (log_likelihood.argmax(1) == batch.labels).sum()
    for before, after in zip(expected.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad / 4)
    for before, after, average in zip(*(m.parameters() for m in (expected, model, ema.module)), strict=True):
        torch.testing.assert_close(average, 0.1 * before + 0.9 * after)  # (1 + 0) / (10 + 0) of the first
    assert stepper.schedule.taken == 1


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_batches_add_up_to_a_step(pieces):
    whole = make_batch(dtype=torch.float64)
    gradients = []
    for count in (1, pieces):
        model = make_model(torch.float64)
        parts = zip(whole.images.chunk(count), whole.labels.chunk(count), strict=True)
        losses, _, images = make_stepper(model).gradients([Batch(x, y, []) for x, y in parts])
        gradients.append([losses, images, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


def test_bfloat16_steps_are_close_to_float32s():
    steps = {}
    for name in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = create_model("rednet_tiny", num_classes=3, in_channels=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        schedule = CosineSchedule(optimizer, 100, 0.05)
        stepper = Stepper(model, model, optimizer, schedule, Precision(name, CPU), ALONE, clip_grad_norm=1.0)
        seen = []
        handle = model.stem.conv1.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.dtype)
        )
        steps[name] = [stepper([make_batch(12)], "here").loss / 12 for _ in range(6)]
        handle.remove()
        assert set(seen) == {getattr(torch, name)}
    assert steps["float32"][-1] < steps["float32"][0]
    torch.testing.assert_close(steps["bfloat16"], steps["float32"], rtol=0.05, atol=0.02)


def test_a_loss_that_is_not_finite_stops():
    model = make_model()
    batch = make_batch()
    batch.images[0, 0, 0, 0] = math.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        NonFiniteError, match=r"loss \(nan\).*not finite at epoch 3, step 17.*learning rate is 0.1"
    ):
        make_stepper(model)([batch], "epoch 3, step 17")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_stops():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(3))

        def forward(self, images):
            return self.scale.abs().sqrt() + images.mean((2, 3))[:, :1]  # infinite slope at zero

    with pytest.raises(NonFiniteError, match="gradient"):
        make_stepper(Root())([make_batch()], "here")


def test_some_steps_may_be_left_out():
    model = nn.Sequential(nn.BatchNorm2d(2), make_model())
    good, bad = make_batch(), make_batch()
    bad.images[0, 0, 0, 0] = math.inf
    stepper = make_stepper(model, skip_non_finite=2)
    assert stepper([good], "here").taken
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        assert not stepper([bad], "here").taken
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)  # the running statistics, too
    assert stepper([good], "here").taken
    assert math.isfinite(model[0].running_mean.sum())
    for _ in range(2):
        stepper([bad], "here")
    with pytest.raises(NonFiniteError, match="and so were 2 before"):
        stepper([bad], "here")


def test_precisions_that_a_cpu_has_not():
    with pytest.raises(ValueError, match="float16 is for CUDA"):
        Precision("float16", CPU)


def test_devices(monkeypatch):
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(RuntimeError, match="sees no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(RuntimeError, match="Process 2 of this machine has no GPU"):
        choose_device("cuda", 2)


# --- Progress ---------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_few_lines(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log, terminal = io.StringIO(), Terminal()
    bars = [Progress("epoch 1/2", 100, stream) for stream in (log, terminal)]
    for _ in range(100):
        now[0] += 1
        for bar in bars:
            bar.step("loss 1.0")
    for bar in bars:
        bar.close()
    assert log.getvalue().splitlines() == [
        "epoch 1/2 30/100 loss 1.0 1:10 left",
        "epoch 1/2 60/100 loss 1.0 0:40 left",
        "epoch 1/2 90/100 loss 1.0 0:10 left",
    ]
    lines = terminal.getvalue().split("\r")
    assert "\n" not in terminal.getvalue()
    assert lines[50].startswith("[============            ] epoch 1/2 50/100")
    assert not lines[-2].strip()  # cleared at the end


def test_durations():
    assert [duration(s) for s in (0.4, 61, 3599.6, 7325)] == ["0:00", "1:01", "1:00:00", "2:02:05"]
