"""One epoch of training, and evaluation."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from training.console import TrainProgress
from training.device import autocast
from training.errors import RunError
from training.loader import ImageLoader


@dataclass
class EpochSums:
    """What an epoch of training has come to so far: plain values, so that a checkpoint in its middle can hold them."""

    step: int = 0  # steps done
    num_images: int = 0
    num_correct: int = 0
    loss: float = 0.0  # nats, summed over the images
    lr: float = 0.0  # of the last step
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """train_loss (nats), train_acc (percent), images_per_second, lr: each image counted as it was in its step."""
        return {
            "train_loss": self.loss / self.num_images,
            "train_acc": 100 * self.num_correct / self.num_images,
            "images_per_second": self.num_images / self.seconds,
            "lr": self.lr,
        }


def train_one_epoch(
    model: nn.Module,
    loader: ImageLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    dtype: torch.dtype,
    sums: EpochSums,
    progress: TrainProgress,
    *,
    clip_grad_norm: float = 0.0,
    label_smoothing: float = 0.0,
    between_steps: Callable[[], object] = lambda: None,
) -> None:
    """Step through what is left of the loader's epoch, adding to `sums`; between two steps, all is fit to be saved.

    RunError where loss or gradient are not finite, before the step that would have spoilt the weights.
    """
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = time.perf_counter()
    for images, labels in loader:
        with autocast(images.device, dtype):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        for name, value in (("loss", loss.item()), ("gradient's norm", grad_norm.item())):
            if not math.isfinite(value):
                raise RunError(
                    f"the {name} became {value} in batch {sums.step + 1} of epoch {loader.epoch + 1}; what was saved "
                    "is untouched. Start anew with a lower --learning-rate, --clip-grad-norm 1 or --precision fp32"
                )
        if clip_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, grad_norm)
        sums.lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()

        sums.step += 1
        sums.num_images += len(labels)
        sums.loss += loss.item() * len(labels)
        likeliest = labels if labels.ndim == 1 else labels.argmax(dim=1)  # of a mixed image: the class with most of it
        sums.num_correct += int((logits.argmax(dim=1) == likeliest).sum())
        now = time.perf_counter()
        sums.seconds, start = sums.seconds + now - start, now
        figures = sums.figures()
        progress.update(sums.step, len(labels), figures["train_loss"], figures["train_acc"], sums.lr)
        between_steps()


@torch.inference_mode()
def predict(
    model: nn.Module, loader: ImageLoader, dtype: torch.dtype, between_batches: Callable[[], object] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Logits (n, num_classes) in fp32 and labels (n,) of all images, on the CPU."""
    model.eval()
    logits, labels = [], []
    for images, batch_labels in tqdm(loader, f"evaluating on the {loader.split} images", disable=None, leave=False):
        with autocast(images.device, dtype):
            logits.append(model(images).float())
        labels.append(batch_labels)
        between_batches()
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def evaluate(
    model: nn.Module, loader: ImageLoader, dtype: torch.dtype, between_batches: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Mean cross-entropy (nats) and accuracy (percent) over all images, named by their split: test_loss, test_acc.

    RunError where the loss is not finite, so that no such model is saved.
    """
    logits, labels = predict(model, loader, dtype, between_batches)
    loss = F.cross_entropy(logits.double(), labels).item()
    if not math.isfinite(loss):
        raise RunError(
            f"the {loader.split} loss became {loss}: start anew with a lower --learning-rate, or --clip-grad-norm 1"
        )
    correct = int((logits.argmax(dim=1) == labels).sum())
    return {f"{loader.split}_loss": loss, f"{loader.split}_acc": 100 * correct / len(labels)}
