"""One epoch of training, and evaluation."""

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from training.console import TrainProgress
from training.device import autocast
from training.errors import RunError
from training.loader import ImageLoader


def train_one_epoch(
    model: nn.Module,
    loader: ImageLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    dtype: torch.dtype,
    progress: TrainProgress,
    *,
    clip_grad_norm: float = 0.0,
    label_smoothing: float = 0.0,
) -> dict[str, float]:
    """Step through the loader once: train_loss (nats), train_acc (percent), images_per_second, lr of the last step.

    Loss and accuracy are those of the augmented images, each before the step it was used for.
    RunError where the loss is not finite, before the step that would have spoilt the weights.
    """
    model.train()
    device = loader.images.device
    start = time.perf_counter()
    loss_sum, correct, seen, lr = 0.0, 0, 0, 0.0
    for batch, (images, labels) in enumerate(loader, start=1):
        with autocast(device, dtype):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        if not math.isfinite(loss.item()):
            raise RunError(
                f"the loss became {loss.item()} in batch {batch} of epoch {loader.epoch + 1}; what was saved is "
                "untouched. Start anew with a lower --learning-rate, --clip-grad-norm 1 or --precision fp32"
            )
        optimizer.zero_grad()
        loss.backward()
        if clip_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        optimizer.step()
        lr = optimizer.param_groups[0]["lr"]
        scheduler.step()

        seen += len(labels)
        loss_sum += loss.item() * len(labels)
        likeliest = labels if labels.ndim == 1 else labels.argmax(dim=1)  # of a mixed image: the class with most of it
        correct += int((logits.argmax(dim=1) == likeliest).sum())
        progress.update(batch, len(labels), loss_sum / seen, 100 * correct / seen, lr)
    seconds = time.perf_counter() - start
    return {
        "train_loss": loss_sum / seen,
        "train_acc": 100 * correct / seen,
        "images_per_second": seen / seconds,
        "lr": lr,
    }


@torch.inference_mode()
def predict(model: nn.Module, loader: ImageLoader, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits (n, num_classes) in fp32 and labels (n,) of all images, on the CPU."""
    model.eval()
    logits, labels = [], []
    for images, batch_labels in tqdm(loader, f"evaluating on the {loader.split} images", disable=None, leave=False):
        with autocast(images.device, dtype):
            logits.append(model(images).float())
        labels.append(batch_labels)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def evaluate(model: nn.Module, loader: ImageLoader, dtype: torch.dtype) -> dict[str, float]:
    """Mean cross-entropy (nats) and accuracy (percent) over all images, named by their split: test_loss, test_acc.

    RunError where the loss is not finite, so that no such model is saved.
    """
    logits, labels = predict(model, loader, dtype)
    loss = F.cross_entropy(logits.double(), labels).item()
    if not math.isfinite(loss):
        raise RunError(
            f"the {loader.split} loss became {loss}: start anew with a lower --learning-rate, or --clip-grad-norm 1"
        )
    correct = int((logits.argmax(dim=1) == labels).sum())
    return {f"{loader.split}_loss": loss, f"{loader.split}_acc": 100 * correct / len(labels)}
