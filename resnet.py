"""ResNet-18 for small images, written by hand: the convolutional network to compare the ViT with.

"Deep Residual Learning for Image Recognition" (He et al., 2015, https://arxiv.org/abs/1512.03385) in its usual form for
32x32 images: the stem is a 3x3 convolution without pooling, not a 7x7 one. Module names are torchvision's.

    model = ResNet18()                                        # 11,173,962 parameters
    logits = model(torch.randn(2, 3, 32, 32))                 # (2, 10)

Shapes: B images, S height and width of the image, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the input, or a 1x1 projection of it where the shape changes."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + identity)


class ResNet18(nn.Module):
    """Images (B, in_chans, S, S), normalized, to logits (B, num_classes). S is 32 on CIFAR; any size from 9 works."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, stride=1)
        self.layer2 = self._stage(64, 128, stride=2)
        self.layer3 = self._stage(128, 256, stride=2)
        self.layer4 = self._stage(256, 512, stride=2)
        self.fc = nn.Linear(512, num_classes)
        self.init_weights()
        self.to(memory_format=torch.channels_last)  # the fastest memory layout for convolutions

    @staticmethod
    def _stage(in_planes: int, planes: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(in_planes, planes, stride), BasicBlock(planes, planes, 1))

    def init_weights(self) -> None:
        """Draw the convolutions' weights from He et al.'s (2015) normal distribution for ReLU, as torchvision does."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (B, 64, S, S)
        x = self.layer1(x)                   # (B, 64, S, S)
        x = self.layer2(x)                   # (B, 128, S/2, S/2)
        x = self.layer3(x)                   # (B, 256, S/4, S/4)
        x = self.layer4(x)                   # (B, 512, S/8, S/8)
        x = torch.mean(x, dim=(2, 3))        # (B, 512)
        return self.fc(x)                    # (B, K)
