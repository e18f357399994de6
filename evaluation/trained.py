"""A trained model, with all that its checkpoint says of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import history
from training.data import Dataset, create_eval_loader
from training.data.loader import normalize
from training.device import autocast
from training.engine import predict
from training.errors import RunError


@dataclass(frozen=True)
class Trained:
    """A checkpoint (what training.checkpoint.load returns), the model in it, and where to compute."""

    path: Path
    saved: dict[str, Any]
    model: nn.Module
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        return self.saved["data"]["class_names"]

    @property
    def img_size(self) -> int:
        return self.saved["config"]["img_size"]

    @property
    def dtype(self) -> torch.dtype:
        """What the matrix products were computed in while it was trained, and are here."""
        return getattr(torch, self.saved["precision"])

    @property
    def stats(self) -> dict[str, Any]:
        return {name: self.saved["data"][name] for name in ("mean", "std")}

    @property
    def title(self) -> str:
        return f"{self.saved['model_name']} ({self.path.as_posix()})"

    @property
    def records(self) -> history.History | None:
        """The run's history, or None where no epoch is done."""
        records = history.read(self.path.parent / "training_history.json") or self.saved.get("history")
        return records if records and records["epoch"] else None

    @property
    def run(self) -> dict[str, Any]:
        """What config.json says of the run beside its settings: machine, versions, command. Empty where it is gone."""
        try:
            content = json.loads((self.path.parent / "config.json").read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images (n, 3, H, W) to what the model takes, on its device."""
        return normalize(images.to(self.device), **self.stats)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, num_classes) in fp32, on the CPU, of a few uint8 images (n, 3, H, W)."""
        with autocast(self.device, self.dtype):
            return self.model(self.normalize(images)).float().cpu()

    def predict(self, dataset: Dataset, split: str = "test") -> Tensor:
        """Logits (n, num_classes) in fp32, on the CPU, of the test images; the progress bar calls them `split`.

        RunError where they are not finite.
        """
        logits, _ = predict(self.model, create_eval_loader(dataset, split, self.stats, self.device), self.dtype)
        if not logits.isfinite().all():
            raise RunError(
                f"{self.path} gives logits that are not finite: its weights are broken, take another epoch's"
            )
        return logits

    def describe(self) -> dict[str, Any]:
        """What evaluation.json says of the model itself."""
        return {
            "checkpoint": self.path.as_posix(),
            "model_name": self.saved["model_name"],
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "epoch": self.saved["epoch"],
            "precision": self.saved["precision"],
        }
