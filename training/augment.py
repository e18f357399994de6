"""Augmentation of whole chunks of images: crop, flip and AutoAugment, each image with draws of its own.

The draws of image i in epoch e depend on (seed, e, i) alone: not on batch size, threads or where a run was resumed.
Images that drew the same operation, magnitude and sign go through torchvision's functional op together: each gets the
pixels it would get alone, at some ten times the speed of one image at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as tv

NUM_MAGNITUDES = 10  # levels 0..9 of an operation's range, as in the AutoAugment paper


def random_stream(seed: int, epoch: int, name: str) -> torch.Generator:
    """A generator for one purpose in one epoch. Streams of another name, epoch or seed are independent of it."""
    words = np.random.SeedSequence([seed, epoch, *name.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


@dataclass(frozen=True)
class Draws:
    """What the images of an epoch drew, a row an image: uniform numbers in [0, 1), always drawn on the CPU."""

    crop: Tensor  # (n, 2): top, left
    flip: Tensor  # (n, 1)
    auto_augment: Tensor  # (n, 5): sub-policy, then chance and sign for each of its two operations

    @classmethod
    def of_epoch(cls, seed: int, epoch: int, num_images: int) -> "Draws":
        widths = {"crop": 2, "flip": 1, "auto_augment": 5}
        return cls(
            **{
                name: torch.rand(num_images, width, generator=random_stream(seed, epoch, name))
                for name, width in widths.items()
            }
        )

    def __getitem__(self, index: Tensor) -> "Draws":
        return Draws(self.crop[index], self.flip[index], self.auto_augment[index])


@dataclass(frozen=True)
class Augmentation:
    """The training transform: uint8 images (n, 3, H, W) and their draws to uint8 images of the same shape."""

    crop_padding: int
    horizontal_flip: bool
    auto_augment: bool

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if self.crop_padding:
            images = random_crop(images, draws.crop, self.crop_padding)
        if self.horizontal_flip:
            mirror = (draws.flip < 0.5).view(-1, 1, 1, 1).to(images.device)
            images = torch.where(mirror, images.flip(-1), images)
        if self.auto_augment:
            images = auto_augment(images, draws.auto_augment)
        return images


def random_crop(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad with black and cut (n, C, H, W) out again at the place that `draws` (n, 2) says."""
    n, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, C, 2*padding + 1, 2*padding + 1, H, W), a view
    top, left = (draws * (2 * padding + 1)).long().to(images.device).unbind(1)
    return windows[torch.arange(n, device=images.device), :, top, left]


def auto_augment(images: Tensor, draws: Tensor) -> Tensor:
    """AutoAugment with CIFAR-10's policy, a sub-policy for each image (Cubuk et al., https://arxiv.org/abs/1805.09501).

    Args:
        images: uint8 (n, 3, H, W).
        draws: (n, 5), uniform in [0, 1): the sub-policy, then chance and sign for each of its two operations.
    """
    policies = AutoAugment(AutoAugmentPolicy.CIFAR10).policies  # 25 pairs of (operation, probability, magnitude 0..9)
    chosen = (draws[:, 0] * len(policies)).long()
    images = images.clone()
    for step in range(2):
        chance, sign = draws[:, 1 + 2 * step], draws[:, 2 + 2 * step]
        members: dict[tuple[str, float], list[Tensor]] = {}  # images by what they go through
        for number, policy in enumerate(policies):
            name, probability, level = policy[step]
            applies = (chosen == number) & (chance < probability)
            for negative in (False, True):
                group = (applies & ((sign < 0.5) == negative)).nonzero().squeeze(1)
                members.setdefault((name, magnitude(name, level, negative, images.shape[-1])), []).append(group)
        for (name, value), groups in members.items():
            index = torch.cat(groups).to(images.device)
            if len(index):
                images[index] = OPERATIONS[name](images[index], value)
    return images


def magnitude(name: str, level: int | None, negative: bool, size: int) -> float:
    """An operation's argument at a level 0..9, for images `size` pixels wide; some have a sign."""
    if level is None:  # AutoContrast, Equalize, Invert
        return 0.0
    if name == "Posterize":
        return 8 - round(4 * level / (NUM_MAGNITUDES - 1))  # bits that stay
    if name == "Solarize":
        return torch.linspace(1.0, 0.0, NUM_MAGNITUDES)[level].item()  # threshold, over the brightest value
    highest = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150 / 331 * size,
        "TranslateY": 150 / 331 * size,
        "Rotate": 30.0,
    }
    value = torch.linspace(0.0, highest.get(name, 0.9), NUM_MAGNITUDES)[level].item()  # in fp32, as torchvision has it
    return -value if negative else value


def affine(images: Tensor, translate: list[float] | None = None, shear: list[float] | None = None) -> Tensor:
    # shears hold the top left corner still, as in the policy's original code; the centre matters only to them
    return tv.affine(
        images, angle=0.0, scale=1.0, translate=translate or [0.0, 0.0], shear=shear or [0.0, 0.0],
        center=[0, 0] if shear else None,
    )  # fmt: skip


OPERATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "ShearX": lambda x, m: affine(x, shear=[math.degrees(math.atan(m)), 0.0]),
    "ShearY": lambda x, m: affine(x, shear=[0.0, math.degrees(math.atan(m))]),
    "TranslateX": lambda x, m: affine(x, translate=[int(m), 0]),
    "TranslateY": lambda x, m: affine(x, translate=[0, int(m)]),
    "Rotate": lambda x, m: tv.rotate(x, m),
    "Brightness": lambda x, m: tv.adjust_brightness(x, 1 + m),
    "Color": lambda x, m: tv.adjust_saturation(x, 1 + m),
    "Contrast": lambda x, m: tv.adjust_contrast(x, 1 + m),
    "Sharpness": lambda x, m: tv.adjust_sharpness(x, 1 + m),
    "Posterize": lambda x, m: tv.posterize(x, int(m)),
    "Solarize": lambda x, m: tv.solarize(x, 255 * m),
    "AutoContrast": lambda x, m: tv.autocontrast(x),
    "Equalize": lambda x, m: tv.equalize(x),
    "Invert": lambda x, m: tv.invert(x),
}
