"""Involution in the place of an existing network's convolutions, by one call, on handwritten digits.

Run `python examples/convert.py` where involution is installed with its extra `demo`: a small residual network is
trained as it is, then with its 3x3 convolutions replaced. It takes some seconds on a CPU.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import involution

try:
    from sklearn.datasets import load_digits  # 1797 images of 8x8 pixels, which ship with it
except ImportError as error:
    raise ImportError(
        f"This example needs scikit-learn, but {error.name} is missing. Install it with: pip install -e '.[demo]'"
    ) from error


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: a network that knows nothing of involution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, input: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(input)))
        return F.relu(input + self.norm2(self.conv2(x)))


def network(channels: int = 32) -> nn.Module:
    stem = [nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    wider = [nn.Conv2d(channels, 2 * channels, 1, 2, bias=False), nn.BatchNorm2d(2 * channels)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, 10)]
    return nn.Sequential(*stem, Block(channels), *wider, Block(2 * channels), *head)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels, of which every fourth is for the test."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    test = torch.arange(len(y)) % 4 == 3
    return x[~test], y[~test], x[test], y[test]


def train(model: nn.Module, epochs: int) -> float:
    """The accuracy on the test images after training on the others."""
    x, y, test_x, test_y = digits()
    batch, steps = 64, epochs * (len(x) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            chosen = order[start : start + batch]
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5)  # kernels that are not normalised need it
            optimiser.step()
            schedule.step()
        print(f"\r  epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}", end="", flush=True)
    model.eval()
    with torch.no_grad():
        return (model(test_x).argmax(1) == test_y).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    convolutions = network()
    involutions, report = involution.convert(convolutions)  # the one call
    print(report)
    for name, model in (("convolution", convolutions), ("involution", involutions)):
        start = time.perf_counter()
        accuracy = train(model, epochs)
        count = sum(parameter.numel() for parameter in model.parameters())
        seconds = time.perf_counter() - start
        print(f"\r{name}: {count:,} parameters, test accuracy {accuracy:.1%}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
