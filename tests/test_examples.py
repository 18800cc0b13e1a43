"""The examples: their answers are right, and they run."""

from __future__ import annotations

import importlib
import itertools
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str, monkeypatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def threads():
    """The examples set their number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_answer_of_the_sequence_is_in_the_recording_at_its_place(monkeypatch):
    sequence = load("sequence", monkeypatch)
    recording = sequence.record(3, torch.Generator().manual_seed(0))
    assert 0.5 < recording.signal.square().mean() < 2
    assert 2 < recording.shift.abs().max() <= sequence.LARGEST
    # s(t) = y(t + e): interpolate the recording, which is oversampled four times, by a windowed sinc.
    around = torch.arange(-30, 31, dtype=torch.float64)
    for b in range(3):
        y = recording.known[b, 0].double()
        for t in range(60, 190, 7):
            place = t + recording.shift[b, t]
            samples = place.round() + around
            distance = place - samples
            window = (math.pi * distance / 62).cos().square()
            value = (y[samples.long()] * distance.sinc() * window).sum()
            assert value == pytest.approx(float(recording.signal[b, 0, t]), abs=0.01)


def test_the_response_is_the_derivative(monkeypatch):
    sequence = load("sequence", monkeypatch)
    kernel = torch.arange(1.0, sequence.KERNEL + 1)
    model = torch.nn.Conv1d(2, 1, sequence.KERNEL, padding="same", bias=False)
    model.weight.data[0] = torch.stack([kernel, 0 * kernel])
    response = sequence.response(model, torch.randn(2, sequence.LENGTH))
    half, middle = sequence.KERNEL // 2, sequence.KERNEL - 1
    torch.testing.assert_close(response[100, middle - half : middle + half + 1], kernel)
    assert response[100].count_nonzero() == sequence.KERNEL


def test_the_texture_moves_in_its_direction(monkeypatch):
    volume = load("volume", monkeypatch)
    blocks = volume.film(64, torch.Generator().manual_seed(0), noise=0.0)
    assert set(blocks.direction.tolist()) == set(range(9))
    for video, direction in zip(blocks.video[:, 0], blocks.direction.tolist(), strict=True):
        down, right = list(volume.DIRECTIONS.values())[direction]
        for before, after in itertools.pairwise(video):
            # What was at (i, j) is at (i + down, j + right).
            assert torch.equal(after.roll((-down, -right), (0, 1))[1:-1, 1:-1], before[1:-1, 1:-1])
        assert not torch.equal(video[0], video[1]) or direction == 0


@pytest.mark.parametrize("name", ["sequence", "volume"])
def test_the_rival_has_at_least_as_many_parameters(monkeypatch, name):
    example, rival = load(name, monkeypatch), load("rival", monkeypatch)
    budget = rival.parameters(example.network("involution", 16))
    network = rival.smallest_not_below(budget, lambda channels: example.network("convolution", channels))
    channels = network[0].out_channels
    assert (
        rival.parameters(network) >= budget > rival.parameters(example.network("convolution", channels - 1))
    )


@pytest.mark.parametrize(
    ("name", "settings"), [("sequence", ["--channels=8"]), ("volume", ["--channels=8", "--test=20"])]
)
def test_they_run(monkeypatch, capsys, tmp_path, name, settings):
    example = load(name, monkeypatch)
    status = example.main(["--steps=3", f"--output={tmp_path / 'out.png'}", *settings])
    assert status == 1  # three steps are not enough for what the example promises
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "involution" in out
    assert "depthwise convolution" in out
