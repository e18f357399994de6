"""MixUp and CutMix: training images blended in pairs, with targets in the same shares."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

from training.data.augment import random_stream


@dataclass(frozen=True)
class Mixing:
    """Applies MixUp or CutMix, one of them drawn where both are on, to a batch; torchvision's own classes."""

    num_classes: int
    mixup_alpha: float = 0.0  # Beta(alpha, alpha) is the distribution of the shares; 0 is off
    cutmix_alpha: float = 0.0
    probability: float = 1.0  # chance that a batch is mixed at all

    def __call__(self, images: Tensor, labels: Tensor, seed: int, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W), labels (n,) to images, targets (n, num_classes), by draws of (seed, epoch, step).

        A batch that is not mixed keeps its labels (n,).
        """
        kinds = [
            kind(alpha=alpha, num_classes=self.num_classes)
            for kind, alpha in ((MixUp, self.mixup_alpha), (CutMix, self.cutmix_alpha))
            if alpha
        ]
        chance, choice = torch.rand(2, generator=random_stream(seed, epoch, f"mix {step}")).tolist()
        if not kinds or chance >= self.probability:
            return images, labels
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's global generator: lend it ours
            torch.default_generator.manual_seed(random_stream(seed, epoch, f"mix share {step}").initial_seed())
            return kinds[int(choice * len(kinds))](images, labels)
