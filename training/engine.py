"""One epoch of training, and evaluation."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from training import distributed
from training.data.loader import ImageLoader
from training.device import autocast
from training.errors import GENTLER, RunError


@dataclass
class EpochSums:
    """What an epoch of training has come to so far, in plain values: a checkpoint in mid-epoch holds them."""

    step: int = 0  # steps done
    num_images: int = 0
    num_correct: int = 0
    loss: float = 0.0  # nats, summed over the images
    grad_norm: float = 0.0  # L2 norm of the gradient before clipping, summed over the steps
    lr: float = 0.0  # of the last step
    seconds: float = 0.0

    def add(self, step: int, num_images: int, num_correct: int, loss: float, grad_norm: float, seconds: float) -> None:
        """Add what came since the last call; `step` is the last step done."""
        self.grad_norm += grad_norm
        self.step = step
        self.num_images += num_images
        self.num_correct += num_correct
        self.loss += loss
        self.seconds += seconds

    def metrics(self) -> dict[str, float]:
        """train_loss (nats), train_acc (percent), images_per_second, lr; each image counts as it was in its step."""
        return {
            "train_loss": self.loss / self.num_images,
            "train_acc": 100 * self.num_correct / self.num_images,
            "images_per_second": self.num_images / self.seconds,
            "lr": self.lr,
        }


class StepHooks(Protocol):
    """What train_one_epoch calls; training/run.py shows the progress, saves and stops in them."""

    @property
    def sums(self) -> EpochSums: ...

    def sync_due(self, step: int) -> bool:
        """Whether to wait for the device in this step (from 1) and read what the steps have come to."""
        ...

    def after_sync(self) -> None:
        """Called after a step that waited for the device. Model, optimizer and sums are fit to be saved then."""
        ...


def train_one_epoch(
    model: nn.Module,
    loader: ImageLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    dtype: torch.dtype,
    hooks: StepHooks,
    *,
    clip_grad_norm: float = 0.0,
    label_smoothing: float = 0.0,
) -> None:
    """Run the remaining steps of the loader's epoch and add their loss, accuracy and so on to `hooks.sums`.

    After a NaN or infinite loss or gradient, RunError at the next sync: before the hooks can save a spoilt model.
    """
    model.train()
    sums, device, num_steps = hooks.sums, loader.images.device, len(loader)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    new_sums = torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    new_images, start = 0, time.perf_counter()  # of the steps since the last sync; their sums wait on the device
    for step, (images, labels) in enumerate(loader, start=sums.step + 1):
        num_images = loader.images_in_step(step - 1)  # of all ranks; a rank's share of the last may be empty
        optimizer.zero_grad()  # here, not after the step: the forward pass can use the memory of the old gradients
        with autocast(device, dtype):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")
        (loss * (distributed.world_size() / num_images)).backward()  # DistributedDataParallel averages over the ranks
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, grad_norm)
        finite = loss.isfinite() & grad_norm.isfinite()
        likeliest = labels if labels.ndim == 1 else labels.argmax(dim=1)  # of a mixed image: the class with most of it
        correct = (logits.argmax(dim=1) == likeliest).sum()
        new_sums += torch.stack([loss.detach(), correct, grad_norm / distributed.world_size(), ~finite])
        new_images += num_images

        sync = step == num_steps or hooks.sync_due(step)
        if sync:
            loss_sum, num_correct, norms, num_bad = distributed.add_up(new_sums).tolist()
            if num_bad:
                raise not_finite(loss, grad_norm, loader.epoch + 1, sums.step + 1, step)
        sums.lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        if sync:
            now = time.perf_counter()
            sums.add(step, new_images, int(num_correct), loss_sum, norms, now - start)
            new_sums, new_images, start = torch.zeros_like(new_sums), 0, now
            hooks.after_sync()


def not_finite(loss: Tensor, grad_norm: Tensor, epoch: int, first_batch: int, batch: int) -> RunError:
    """The error for a loss or gradient that is infinite or NaN, first seen somewhere from `first_batch` to `batch`."""
    values = {"loss": loss.item(), "gradient's norm": grad_norm.item()}
    bad = [f"the {name} became {value}" for name, value in values.items() if not math.isfinite(value)]
    where = f"batch {batch}" if first_batch == batch else f"batches {first_batch} to {batch}"
    return RunError(
        f"{bad[0] if bad else 'loss or gradient were not finite'} in {where} of epoch {epoch}; what was saved is "
        f"untouched. Start anew with {GENTLER}, or --precision fp32"
    )


@torch.inference_mode()
def predict(
    model: nn.Module, loader: ImageLoader, dtype: torch.dtype, between_batches: Callable[[], object] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Logits (n, num_classes) in fp32 and labels (n,) of this rank's images, on the CPU."""
    model.eval()
    logits, labels = [], []
    for images, batch_labels in tqdm(
        loader, f"evaluating on the {loader.split} images", disable=True if distributed.rank() else None, leave=False
    ):
        with autocast(images.device, dtype):
            logits.append(model(images).float())
        labels.append(batch_labels)
        between_batches()
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def evaluate(
    model: nn.Module, loader: ImageLoader, dtype: torch.dtype, between_batches: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Mean cross-entropy (nats) and accuracy (percent) over all images, named after the split: test_loss, test_acc.

    Every rank evaluates rank 0's model, buffers (BatchNorm's statistics) too: it is the one that is saved. RunError
    where the loss is not finite, so that no such model is saved.
    """
    distributed.broadcast_buffers(model)
    logits, labels = predict(model, loader, dtype, between_batches)
    sums = [F.cross_entropy(logits.double(), labels, reduction="sum"), (logits.argmax(dim=1) == labels).sum()]
    loss_sum, correct = distributed.add_up(torch.stack(sums)).tolist()
    if not math.isfinite(loss_sum):
        raise RunError(f"the {loader.split} loss became {loss_sum}: start anew with {GENTLER}")
    num_images = len(loader.images)
    return {f"{loader.split}_loss": loss_sum / num_images, f"{loader.split}_acc": 100 * int(correct) / num_images}
