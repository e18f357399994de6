"""Test images made harder: noise, blur, brightness, JPEG and shift, each at three strengths.

The idea and the strengths of noise, blur and JPEG come from CIFAR-10-C (Hendrycks and Dietterich, 2019,
https://arxiv.org/abs/1903.12261: severities 1, 3 and 5 of its 32x32 images). Brightness and shift are this project's
own, so the numbers can't be compared with that benchmark's. Lengths grow with the image.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from evaluation import metrics
from evaluation.trained import TrainedModel
from training.data import Dataset
from training.data.loader import chunk_size


def add_noise(images: Tensor, std: float) -> Tensor:
    """Add Gaussian noise. `std` is its standard deviation in units of the brightest value."""
    return (images.float() + 255 * std * torch.randn(images.shape)).round().clamp(0, 255).to(torch.uint8)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian. `sigma` is its standard deviation in 32nds of the image's width."""
    sigma *= images.shape[-1] / 32
    reach = min(max(1, round(4 * sigma)), images.shape[-1] - 1)
    return tv.gaussian_blur(images, [2 * reach + 1] * 2, [sigma] * 2)


def shift(images: Tensor, length: float) -> Tensor:
    """Move to the right and down by `length` 32nds of the width, at least one pixel; the pixels at the edge repeat."""
    size = images.shape[-1]
    pixels = min(max(1, round(length * size / 32)), size - 1)
    padded = F.pad(images.float(), [pixels, 0, pixels, 0], mode="replicate")
    return padded[..., :size, :size].to(torch.uint8)


# name: function, its strengths from weak to strong, what the strength is
CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], tuple[float, float, float], str]] = {
    "noise": (add_noise, (0.04, 0.08, 0.10), "standard deviation, in units of the brightest value"),
    "blur": (blur, (0.4, 0.7, 1.0), "standard deviation, in 32nds of the image's width"),
    "brightness": (tv.adjust_brightness, (1.25, 1.5, 2.0), "factor"),
    "jpeg": (tv.jpeg, (80, 58, 40), "quality, 1 to 100"),
    "shift": (shift, (2, 4, 6), "right and down, in 32nds of the image's width"),
}


def corrupt(images: Tensor, name: str, strength: float) -> Tensor:
    """Apply one of CORRUPTIONS to uint8 images (n, 3, H, W), a chunk at a time; noise is the same at each call."""
    function = CORRUPTIONS[name][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.cat([function(chunk, strength) for chunk in images.split(chunk_size(images))])


def evaluate_corrupted(trained: TrainedModel, dataset: Dataset) -> dict[str, list[dict[str, float]]]:
    """Evaluate under each corruption, weakest first: strength, accuracy (percent) and loss (nats)."""

    def evaluate(name: str, strength: float) -> dict[str, float]:
        images = corrupt(dataset.test_images, name, strength)
        logits = trained.predict(replace(dataset, test_images=images), f"{name} {strength:g} test")
        scores = metrics.headline(logits, dataset.test_labels)
        return {"strength": strength, "accuracy": scores["accuracy"], "loss": scores["loss"]}

    return {name: [evaluate(name, strength) for strength in CORRUPTIONS[name][1]] for name in CORRUPTIONS}
