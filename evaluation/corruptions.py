"""Test images made harder: noise, blur, brightness, JPEG and shift, each at three strengths.

The idea, and the strengths of noise, blur and JPEG, are CIFAR-10-C's (Hendrycks and Dietterich, 2019,
https://arxiv.org/abs/1903.12261: severities 1, 3 and 5 of its 32x32 images); brightness and shift are this project's
own, so no figure here can be held against one of that benchmark. Lengths grow with the image.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from training.data.loader import chunk_size

SEED = 0  # of the noise


def add_noise(images: Tensor, std: float) -> Tensor:
    """Gaussian noise of this standard deviation, over the brightest value; the same at each call."""
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(images.shape, generator=generator)
    return (images.float() + 255 * std * noise).round().clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian of this standard deviation, in 32nds of the image's width."""
    sigma *= images.shape[-1] / 32
    reach = min(max(1, round(4 * sigma)), images.shape[-1] - 1)
    return tv.gaussian_blur(images, [2 * reach + 1] * 2, [sigma] * 2)


def brighten(images: Tensor, factor: float) -> Tensor:
    return tv.adjust_brightness(images, factor)


def compress(images: Tensor, quality: float) -> Tensor:
    """JPEG of this quality, 1 to 100."""
    return tv.jpeg(images, int(quality))


def shift(images: Tensor, length: float) -> Tensor:
    """To the right and down, in 32nds of the image's width, one pixel at least; the edge's pixels are repeated."""
    size = images.shape[-1]
    pixels = min(max(1, round(length * size / 32)), size - 1)
    padded = F.pad(images.float(), [pixels, 0, pixels, 0], mode="replicate")
    return padded[..., :size, :size].to(torch.uint8)


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, float, float], str]] = {
    "noise": (add_noise, (0.04, 0.08, 0.10), "standard deviation, over the brightest value"),
    "blur": (blur, (0.4, 0.7, 1.0), "standard deviation, in 32nds of the image's width"),
    "brightness": (brighten, (1.25, 1.5, 2.0), "factor"),
    "jpeg": (compress, (80, 58, 40), "quality"),
    "shift": (shift, (2, 4, 6), "right and down, in 32nds of the image's width"),
}


def corrupt(images: Tensor, name: str, strength: float) -> Tensor:
    """uint8 images (n, 3, H, W) under one of CORRUPTIONS, a chunk at a time."""
    function = CORRUPTIONS[name][0]
    return torch.cat([function(chunk, strength) for chunk in images.split(chunk_size(images))])
