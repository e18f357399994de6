"""Write a trained ViT in a form that other programs read.

    python export_vit.py checkpoints/vit_tiny_cifar10 --format safetensors --output exported    # a folder, for timm too
    python export_vit.py checkpoints/vit_tiny_cifar10 --format onnx --output vit.onnx           # takes images, 0 to 1
    python export_vit.py checkpoints/vit_tiny_cifar10 --format torch-export --output vit.pt2    # the same, for torch
    python export_vit.py checkpoints/vit_tiny_cifar10 --format web --output page                # a page for browsers

CHECKPOINT is a file or the folder of a run, or a folder that --format safetensors wrote. What was written is read back
and compared with the model before it gets its name. docs/weights.md shows how to load each.
"""

if __name__ == "__main__":  # Ctrl-C while torch is being imported ends the script without a traceback
    from training.errors import end_at_interrupt

    end_at_interrupt()

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from evaluation.export import FORMATS, new_path, require
from evaluation.trained import TrainedModel
from training.cli import parse
from training.errors import exit_codes
from vit import VisionTransformer

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}  # of the formats that are one file; torch warns of other names


@dataclass(frozen=True)
class ExportConfig:
    """What to export, in what form, and where to."""

    checkpoint: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="CHECKPOINT")]]
    """file or folder of a trained ViT"""
    format: Literal["safetensors", "onnx", "torch-export", "web"]
    """safetensors: a folder for timm, this repository and a model hub; onnx, torch-export: a file; web: a page"""
    output: str
    """file or folder to write; must not exist"""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """of the weights in safetensors"""

    def __post_init__(self):
        if not self.output.endswith(suffix := SUFFIXES.get(self.format, "")):
            raise ValueError(f"--output: {self.format} is a file whose name ends in {suffix}, got {self.output!r}")
        if self.dtype != "fp32" and self.format != "safetensors":
            raise ValueError(f"--dtype is of safetensors; {self.format} has fp32: leave out --dtype")


def main(config: ExportConfig) -> None:
    """Export a checkpoint. Nothing is left at the output where the export differs from the model."""
    require(config.format)
    trained = TrainedModel.load(config.checkpoint, {"VisionTransformer": VisionTransformer}, torch.device("cpu"))
    with new_path(Path(config.output)) as path:
        checked = FORMATS[config.format](trained, path, config.dtype)
    print(f"Wrote {config.output}: {checked}")
    if config.format == "web":
        print(f"To see the page: python -m http.server -d {config.output}")


if __name__ == "__main__":
    with exit_codes():
        main(parse(ExportConfig, __doc__ or ""))
