"""ResNet-50 in plain PyTorch, alone and with a feature pyramid: what RedNet-50 is compared with.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride on the 3x3 convolution, as
torchvision and timm have it; 25,557,032 parameters. With the pyramid of 3x3 convolutions that detectors have, and
without the classifier, 26,852,416.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from involution.layers.convolution_relu import convolution_relu
from involution.models import FeaturePyramid
from involution.models.inference import move_bias

PARAMETERS = 25_557_032
FPN_PARAMETERS = 26_852_416


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(self.bn1, nn.Identity):  # folded
            x = convolution_relu(self.conv2, convolution_relu(self.conv1, input))
            return convolution_relu(
                self.conv3, x, input if self.downsample is None else self.downsample(input)
            )
        x = F.relu(self.bn1(self.conv1(input)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(x))
        x += input if self.downsample is None else self.downsample(input)
        return F.relu(x, inplace=True)


class ResNet(nn.Module):
    """A 7x7 stem, four stages of bottlenecks, average pooling, a linear head."""

    def __init__(self, blocks: Sequence[int] = (3, 4, 6, 3), num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, stages = 64, []
        for stage, count in enumerate(blocks):
            width, chain = 64 << stage, []
            for number in range(count):
                chain.append(Bottleneck(inputs, width, 2 if stage and not number else 1))
                inputs = 4 * width
            stages.append(nn.Sequential(*chain))
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, input: Tensor) -> list[Tensor]:
        """The maps of the stages."""
        if isinstance(self.bn1, nn.Identity):  # folded
            x = convolution_relu(self.conv1, input)
        else:
            x = F.relu(self.bn1(self.conv1(input)), inplace=True)
        maps = [self.maxpool(x)]
        for stage in self.layers:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward(self, input: Tensor) -> Tensor:
        return self.fc(self.features(input)[-1].mean((2, 3)))


class ResNetFPN(nn.Module):
    """ResNet-50's maps and the pyramid of a Faster R-CNN on them: five levels of 256 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ResNet()
        del self.body.fc
        self.fpn = FeaturePyramid((256, 512, 1024, 2048), neck="convolution", extra_levels=1)

    def forward(self, input: Tensor) -> list[Tensor]:
        return self.fpn(self.body.features(input))


def fold(model: nn.Module) -> nn.Module:
    """A copy for inference, treated as ``involution.models.fuse`` treats RedNet.

    Batch norms are folded into the convolutions before them, these take ReLU and addition along, and a shortcut's bias
    goes into the convolution that its result is added to.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                setattr(
                    module,
                    convolution,
                    fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)),
                )
                setattr(module, norm, nn.Identity())
    for module in folded.modules():
        if isinstance(module, Bottleneck) and module.downsample is not None:
            shortcut = module.downsample[0]
            assert isinstance(shortcut, nn.Conv2d)
            move_bias(shortcut, module.conv3)
    return folded
