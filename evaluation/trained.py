"""A trained model, rebuilt from its checkpoint, and what the checkpoint and its run say about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from evaluation.exported import WEIGHTS, read_exported
from training import checkpoint, history
from training.data import Dataset, create_eval_loader
from training.data.loader import normalize
from training.device import autocast, select_precision
from training.engine import predict
from training.errors import RunError, first_line

MOVED = "resumed under other conditions (machine, threads or versions)"  # of a run, see TrainedModel.moved


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint file, its content (see training.checkpoint.load), the model in it, and the device to compute on."""

    path: Path
    saved: dict[str, Any]
    model: nn.Module
    device: torch.device

    @classmethod
    def load(cls, name: str, models: Mapping[str, Callable[..., nn.Module]], device: torch.device) -> Self:
        """Rebuild the model of a checkpoint file, of a run's folder (its best model) or of an exported folder.

        `models` holds the model classes by name. RunError for a file that can't be read or a model that can't be built.
        """
        path = Path(name)
        try:
            if path.is_dir():
                path = path / ("best_model.pth" if not (path / WEIGHTS).exists() else WEIGHTS)
            saved = read_exported(path) if path.name == WEIGHTS else checkpoint.load(path)
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise RunError(f"can't read the checkpoint {path}: {error.strerror}") from None
        if (model_name := saved.get("model_name", "")) not in models:
            raise RunError(f"{path} is a {model_name}: a {' or '.join(models)} is needed here")
        try:
            model = models[model_name](**saved["model_args"])
            own, theirs = ({name: x.shape for name, x in part.items()} for part in (model.state_dict(), saved["model"]))
            if wrong := sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name)):
                raise ValueError(f"{len(wrong)} of its tensors do not fit, such as {wrong[0]}")
            model.load_state_dict(saved["model"])
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise RunError(f"the model in {path} can't be rebuilt: {first_line(error)}") from None
        return cls(path, saved, model.eval().to(device), device)

    @property
    def class_names(self) -> list[str]:
        return self.saved["data"]["class_names"]

    @property
    def img_size(self) -> int:
        return self.saved["config"]["img_size"]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix products: that of the training, but fp32 where the device would only emulate bf16."""
        trained_in = getattr(torch, self.saved["precision"])
        return select_precision("auto", self.device)[0] if trained_in == torch.bfloat16 else trained_in

    @property
    def steps_since_epoch(self) -> int:
        """Steps after the last whole epoch, in a last.pth that was saved within one."""
        return self.saved.get("steps_since_epoch", self.saved.get("epoch_sums", {}).get("step", 0))

    @property
    def stats(self) -> dict[str, Any]:
        """Mean and standard deviation of each channel, by which images are normalized."""
        return {name: self.saved["data"][name] for name in ("mean", "std")}

    @property
    def title(self) -> str:
        return f"{self.saved['model_name']} ({self.path.as_posix()})"

    @property
    def records(self) -> history.History | None:
        """The history of the run, or None if it has no finished epoch."""
        records = history.read(self.path.parent / "training_history.json") or self.saved.get("history")
        return records if records and records["epoch"] else None

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run; the checkpoint itself knows of fewer where the run was extended afterwards."""
        return max(self.saved["config"]["num_epochs"], len(self.records["epoch"]) if self.records else 0)

    @property
    def moved(self) -> bool:
        """Whether the run went on under other conditions, so that those of its end are not all that it had."""
        return bool(self.saved.get("machines_before") or self.run.get("machines_before"))

    @property
    def run(self) -> dict[str, Any]:
        """The content of the run's config.json: settings, machine, versions, command. Empty if it can't be read."""
        if "machine" in self.saved:
            return self.saved["machine"]
        return history.read_object(self.path.parent / "config.json")

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 images (n, 3, H, W) into the model's input, on its device."""
        return normalize(images.to(self.device), **self.stats)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, num_classes) in fp32, on the CPU, for a few uint8 images (n, 3, H, W). RunError as `predict`."""
        with autocast(self.device, self.dtype):
            return self._require_finite(self.model(self.normalize(images)).float().cpu())

    def predict(self, dataset: Dataset, split: str = "test") -> Tensor:
        """Logits (n, num_classes) in fp32, on the CPU, for the test images. The progress bar calls them `split`.

        RunError if they are not finite.
        """
        images, labels = dataset.test_images, dataset.test_labels
        logits, _ = predict(self.model, create_eval_loader(images, labels, split, self.stats, self.device), self.dtype)
        return self._require_finite(logits)

    def _require_finite(self, logits: Tensor) -> Tensor:
        if not logits.isfinite().all():
            raise RunError(
                f"{self.path} gives logits that are not finite: its weights are broken, evaluate another checkpoint"
            )
        return logits

    def predict_with_flip(self, dataset: Dataset, logits: Tensor) -> Tensor:
        """Average the probabilities of each test image and its mirror image; return their logarithm (n, num_classes).

        `logits` are those of the images as they are.
        """
        mirrored = self.predict(replace(dataset, test_images=dataset.test_images.flip(-1)), "mirrored test")
        probabilities = (logits.double().softmax(dim=1) + mirrored.double().softmax(dim=1)) / 2
        return probabilities.clamp(min=1e-300).log()

    def describe(self) -> dict[str, Any]:
        """The part of evaluation.json that is about the model itself."""
        return {
            "checkpoint": self.path.as_posix(), "model_name": self.saved["model_name"],
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "epoch": self.saved["epoch"], "steps_since_epoch": self.steps_since_epoch,
            "precision": self.saved["precision"],
            "evaluation_precision": str(self.dtype).removeprefix("torch."),
        }  # fmt: skip
