"""How fast images are augmented: in chunks, as training does it, and one at a time, as torchvision's pipelines do.

    python benchmarks/augment.py                              # tables, about a minute on one core
    python benchmarks/augment.py --json                       # the same as JSON

All pipelines crop with padding 4, flip, and apply AutoAugment's CIFAR10 policy, on one thread. They take turns, and the
medians are reported. The images are random numbers.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from throughput import describe_machine, take_turns
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from evaluation.comparison import markdown
from training.cli import parse
from training.data import DEFAULT_AUGMENTATION
from training.data.augment import OPERATIONS, magnitude_table
from training.data.loader import chunk_size
from training.errors import exit_codes

CHUNK_SIZES = (64, 512, 4096, 16384)


@dataclass(frozen=True)
class BenchmarkConfig:
    """How to measure."""

    rounds: int = 5
    """timed turns, after an untimed one"""
    json: bool = False
    """print JSON instead of the tables"""


def main(config: BenchmarkConfig) -> None:
    """Time the pipelines in turn, then the single operations, and print the rates."""
    torch.set_num_threads(1)
    images = torch.randint(256, (max(CHUNK_SIZES), 3, 32, 32), dtype=torch.uint8)
    size = chunk_size(images)
    pipelines = median_rates(candidates(images), config.rounds)
    ours = pipelines[f"chunks of {size}"]
    theirs = {name: rate for name, rate in pipelines.items() if name.startswith("torchvision")}
    operations = median_rates(single_operations(images[:size]), config.rounds)
    result: dict[str, Any] = {
        "images_per_second": ours,
        "torchvision_images_per_second": max(theirs.values()),
        "ratio": ours / max(theirs.values()),
        "pipelines": pipelines,
        "operations": operations,
        **describe_machine(images.device),
    }
    if config.json:
        print(json.dumps(result, indent=2))
        return
    for heading, rates in (("pipeline", pipelines), (f"operation, chunks of {size}", operations)):
        print(markdown([{heading: name, "images/s": f"{rate:,.0f}"} for name, rate in rates.items()]))
    print(f"chunks of {size} over the faster of torchvision's: {result['ratio']:.1f} times")


def candidates(images: torch.Tensor) -> dict[str, tuple[int, Callable[[], object]]]:
    """Each pipeline by its name: the number of images that a call augments, and the call."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    usual = [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)]
    per_image = v2.Compose(usual)
    per_image_pil = v2.Compose([*usual, v2.PILToTensor()])
    few = list(images[:256])
    pictures = [tv.to_pil_image(image) for image in few]

    def in_chunks(size: int) -> Callable[[], object]:
        def augment() -> None:  # the random numbers too, as in an epoch
            draws = DEFAULT_AUGMENTATION.draw(42, 0, len(images))
            for part in order.split(size):
                DEFAULT_AUGMENTATION(images[part], {name: values[part] for name, values in draws.items()})

        return augment

    return {
        "torchvision, one PIL image at a time": (len(few), lambda: [per_image_pil(picture) for picture in pictures]),
        "torchvision, one tensor at a time": (len(few), lambda: [per_image(image) for image in few]),
        **{f"chunks of {size}": (len(images), in_chunks(size)) for size in CHUNK_SIZES},
    }


def single_operations(images: torch.Tensor) -> dict[str, tuple[int, Callable[[], object]]]:
    """Each of AutoAugment's operations at a middle magnitude, on a chunk and on one tensor at a time."""
    magnitudes = magnitude_table(10, images.shape[-1])
    middle = {name: values[len(values) // 2] for name, values in magnitudes.items() if name in OPERATIONS}
    few = list(images[:256])
    calls: dict[str, tuple[int, Callable[[], object]]] = {}
    for name, value in middle.items():
        calls[name] = len(images), lambda n=name, v=value: OPERATIONS[n](images, v)
        calls[f"{name}, one at a time"] = len(few), lambda n=name, v=value: [OPERATIONS[n](image, v) for image in few]
    return calls


def median_rates(calls: dict[str, tuple[int, Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Images per second of each call: the median over rounds in which the calls take turns."""
    seconds = take_turns({name: call for name, (_, call) in calls.items()}, rounds, untimed=1)
    return {name: calls[name][0] / statistics.median(times) for name, times in seconds.items()}


if __name__ == "__main__":
    with exit_codes():
        main(parse(BenchmarkConfig, __doc__ or ""))
