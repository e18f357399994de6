"""Augmentation of whole chunks of images: random crop, flip, an AutoAugment-like policy and random erasing.

The random numbers of image i in epoch e, its draws, depend on (seed, e, i) alone: not on batch size, chunks, threads,
ranks or where a run was resumed. Images that drew the same operation, magnitude and sign go through torchvision's
functional op together: the pixels are those of one image at a time, and it is 8.7 times as fast.
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

Draws = dict[str, Tensor]  # random numbers by purpose: uniform in [0, 1), a row for each image, always on the CPU

AUTO_AUGMENT_LEVELS = 10  # levels 0..9 of magnitude (Cubuk et al., 2018, https://arxiv.org/abs/1805.09501)
RAND_AUGMENT_LEVELS = 31  # 0..30 (Cubuk et al., 2019, https://arxiv.org/abs/1909.13719), also TrivialAugment's
ERASING_SCALE, ERASING_RATIO = (0.02, 0.33), (0.3, 3.3)  # area of image, aspect (https://arxiv.org/abs/1708.04896)
ERASING_ATTEMPTS = 10  # boxes to try until one fits into the image, as in torchvision


def random_stream(seed: int, epoch: int, name: str) -> torch.Generator:
    """A generator of random numbers for one purpose `name` in one epoch; each (seed, epoch, name) has its own."""
    words = np.random.SeedSequence([seed, epoch, *name.encode()]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]))


@dataclass(frozen=True)
class Augmentation:
    """The training transform, from uint8 images (n, 3, H, W) and their draws to uint8 images of the same shape."""

    crop_padding: int = 0  # pixels
    horizontal_flip: bool = False
    policy: str = ""  # a name in POLICIES, or none
    magnitude: int = 9  # level of RandAugment's operations, 0..30
    erasing: float = 0.0  # probability that a box of an image is blacked out

    def draw(self, seed: int, epoch: int, num_images: int) -> Draws:
        """Draw an epoch's random numbers. Each purpose has its own stream: an added one does not change the others."""
        widths = {"crop": 2, "flip": 1, "auto_augment": POLICY_DRAWS}
        if self.erasing:
            widths["erasing"] = 3 + 2 * ERASING_ATTEMPTS
        return {
            name: torch.rand(num_images, width, generator=random_stream(seed, epoch, name))
            for name, width in widths.items()
        }

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if self.crop_padding:
            images = random_crop(images, draws["crop"], self.crop_padding)
        if self.horizontal_flip:
            mirror = (draws["flip"] < 0.5).view(-1, 1, 1, 1).to(images.device)
            images = torch.where(mirror, images.flip(-1), images)
        if self.policy:
            images = POLICIES[self.policy](images, draws["auto_augment"], self.magnitude)
        if self.erasing:
            images = random_erasing(images, draws["erasing"], self.erasing)
        return images


def random_crop(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad images (n, C, H, W) with black and crop them to their size; `draws` (n, 2) choose top and left."""
    n, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (n, C, 2*padding + 1, 2*padding + 1, H, W), a view
    top, left = (draws * (2 * padding + 1)).long().to(images.device).unbind(1)
    return windows[torch.arange(n, device=images.device), :, top, left]


def random_erasing(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Random Erasing: black out a box in some images, with torchvision's areas and aspect ratios.

    `draws` (n, 3 + 2 * ERASING_ATTEMPTS): whether, top, left, boxes. The first box that fits is used, if one does.
    """
    n, _, height, width = images.shape
    area_draws, aspect_draws = draws[:, 3:].view(n, ERASING_ATTEMPTS, 2).unbind(-1)
    area = height * width * (ERASING_SCALE[0] + area_draws * (ERASING_SCALE[1] - ERASING_SCALE[0]))
    low, high = (math.log(ratio) for ratio in ERASING_RATIO)
    aspect = (low + aspect_draws * (high - low)).exp()
    box_height, box_width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_height < height) & (box_width < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    box_height, box_width = box_height.gather(1, first), box_width.gather(1, first)  # (n, 1)
    erases = (draws[:, :1] < probability) & fits.any(dim=1, keepdim=True)
    top = (draws[:, 1:2] * (height - box_height + 1)).floor()
    left = (draws[:, 2:3] * (width - box_width + 1)).floor()
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + box_height) & erases  # (n, H)
    in_columns = (columns >= left) & (columns < left + box_width)  # (n, W)
    box = in_rows[:, None, :, None] & in_columns[:, None, None, :]  # (n, 1, H, W)
    return images.masked_fill(box.to(images.device), 0)


def auto_augment(images: Tensor, draws: Tensor, policy: AutoAugmentPolicy) -> Tensor:
    """AutoAugment: each image draws one of 25 pairs of operations; each operation is applied with its own probability.

    `draws` (n, 5): the pair, then for each of its two operations whether it is applied, and the sign.
    """
    pairs = AutoAugment(policy).policies  # 25 pairs of (operation, probability, level or None)
    magnitudes = magnitude_table(AUTO_AUGMENT_LEVELS, images.shape[-1])
    names, chosen = list(magnitudes), (draws[:, 0] * len(pairs)).long()
    identity = names.index("Identity")
    for step in range(2):
        operation = torch.tensor([names.index(pair[step][0]) for pair in pairs])[chosen]
        probability = torch.tensor([pair[step][1] for pair in pairs])[chosen]
        level = torch.tensor([pair[step][2] or 0 for pair in pairs])[chosen]
        applied, negative = draws[:, 1 + 2 * step] < probability, draws[:, 2 + 2 * step] < 0.5
        images = apply_operations(images, magnitudes, operation.where(applied, identity), level, negative)
    return images


def rand_augment(images: Tensor, draws: Tensor, level: int) -> Tensor:
    """RandAugment: two of 14 operations for each image, all at one level. `draws` (n, 4): operation and sign, twice."""
    magnitudes = magnitude_table(RAND_AUGMENT_LEVELS, images.shape[-1])
    del magnitudes["Invert"]
    for step in range(2):
        operation, negative = (draws[:, 2 * step] * len(magnitudes)).long(), draws[:, 2 * step + 1] < 0.5
        images = apply_operations(images, magnitudes, operation, torch.full_like(operation, level), negative)
    return images


def trivial_augment(images: Tensor, draws: Tensor) -> Tensor:
    """TrivialAugmentWide: one of 14 operations for each image, at any level. `draws` (n, 3): operation, level, sign."""
    magnitudes = magnitude_table(RAND_AUGMENT_LEVELS, images.shape[-1], wide=True)
    del magnitudes["Invert"]
    operation, level = (draws[:, 0] * len(magnitudes)).long(), (draws[:, 1] * RAND_AUGMENT_LEVELS).long()
    return apply_operations(images, magnitudes, operation, level, draws[:, 2] < 0.5)


POLICIES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "cifar10": lambda images, draws, _: auto_augment(images, draws, AutoAugmentPolicy.CIFAR10),
    "imagenet": lambda images, draws, _: auto_augment(images, draws, AutoAugmentPolicy.IMAGENET),
    "svhn": lambda images, draws, _: auto_augment(images, draws, AutoAugmentPolicy.SVHN),
    "randaugment": rand_augment,
    "trivialaugment": lambda images, draws, _: trivial_augment(images, draws),
}
POLICY_DRAWS = 5  # random numbers that a policy needs for an image, at most


def apply_operations(
    images: Tensor, magnitudes: dict[str, list[float]], operation: Tensor, level: Tensor, negative: Tensor
) -> Tensor:
    """Apply its operation to each image; images with the same operation, magnitude and sign go together.

    Args:
        images: uint8 (n, 3, H, W).
        magnitudes: the magnitudes of each operation's levels, by the operation's name.
        operation, level: (n,), indices into `magnitudes` and its lists.
        negative: (n,), whether the magnitude's sign is flipped, for operations that have one.
    """
    names = list(magnitudes)
    num_levels = max(map(len, magnitudes.values()))
    level = level.where(torch.tensor([len(magnitudes[name]) > 1 for name in names])[operation], 0)
    negative = negative & torch.tensor([name in SIGNED for name in names])[operation]
    keys = (operation * num_levels + level) * 2 + negative
    order = keys.argsort(stable=True)
    distinct, counts = keys[order].unique_consecutive(return_counts=True)
    images = images.clone()
    for key, group in zip(distinct.tolist(), order.split(counts.tolist()), strict=True):
        name = names[key // 2 // num_levels]
        if name != "Identity":
            magnitude = magnitudes[name][key // 2 % num_levels] * (-1 if key % 2 else 1)
            index = group.to(images.device)
            images[index] = OPERATIONS[name](images[index], magnitude)
    return images


def magnitude_table(num_levels: int, size: int, wide: bool = False) -> dict[str, list[float]]:
    """torchvision's magnitudes of an operation's levels, for images `size` pixels wide; `wide`: TrivialAugmentWide."""

    def up_to(highest: float) -> list[float]:
        return torch.linspace(0.0, highest, num_levels).tolist()  # rounded to fp32, as in torchvision

    normal = (0.3, 150 / 331 * size, 30.0, 0.9, 4)
    shear, translate, rotate, enhance, bits = (0.99, 32.0, 135.0, 0.99, 6) if wide else normal
    return {
        "Identity": [0.0],
        "ShearX": up_to(shear),
        "ShearY": up_to(shear),
        "TranslateX": up_to(translate),  # pixels
        "TranslateY": up_to(translate),
        "Rotate": up_to(rotate),  # degrees
        "Brightness": up_to(enhance),
        "Color": up_to(enhance),
        "Contrast": up_to(enhance),
        "Sharpness": up_to(enhance),
        "Posterize": (8 - (torch.arange(num_levels) / ((num_levels - 1) / bits)).round()).tolist(),  # bits kept
        "Solarize": torch.linspace(1.0, 0.0, num_levels).tolist(),  # threshold, as a fraction of the brightest value
        "AutoContrast": [0.0],
        "Equalize": [0.0],
        "Invert": [0.0],
    }


def affine(images: Tensor, translate: list[float] | None = None, shear: list[float] | None = None) -> Tensor:
    # a shear keeps the top left corner in place, as in AutoAugment's original code; a translation has no centre
    return tv.affine(
        images, angle=0.0, scale=1.0, translate=translate or [0.0, 0.0], shear=shear or [0.0, 0.0],
        center=[0, 0] if shear else None,
    )  # fmt: skip


SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
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
