"""MixUp and CutMix: training images mixed in pairs, and their labels in the same ratio."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

from training.data.augment import random_stream


@dataclass(frozen=True)
class Mixing:
    """Mixes a batch by torchvision's MixUp or CutMix; where both are on, each batch draws one of them."""

    num_classes: int
    mixup_alpha: float = 0.0  # the ratio is drawn from Beta(alpha, alpha); 0 turns MixUp off
    cutmix_alpha: float = 0.0
    probability: float = 1.0  # chance that a batch is mixed at all

    def __call__(self, images: Tensor, labels: Tensor, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix images (n, 3, H, W) and labels (n,) into images and targets (n, num_classes).

        What is drawn depends on (seed, epoch, step) alone. A batch that is not mixed keeps its labels (n,).
        """
        transforms = [
            transform(alpha=alpha, num_classes=self.num_classes)
            for transform, alpha in ((MixUp, self.mixup_alpha), (CutMix, self.cutmix_alpha))
            if alpha
        ]
        chance, choice = torch.rand(2, generator=random_stream(seed, epoch, f"mix {step}")).tolist()
        if not transforms or chance >= self.probability:
            return images, labels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator: restore it after
            torch.default_generator.manual_seed(random_stream(seed, epoch, f"mix share {step}").initial_seed())
            return transforms[int(choice * len(transforms))](images, labels)
