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

from training import distributed
from training.console import TrainProgress
from training.data.loader import ImageLoader
from training.device import autocast
from training.errors import RunError


@dataclass
class EpochSums:
    """What an epoch of training has come to so far: plain values, so that a checkpoint in its middle can hold them."""

    step: int = 0  # steps done
    num_images: int = 0
    num_correct: int = 0
    loss: float = 0.0  # nats, summed over the images
    grad_norm: float = 0.0  # L2 norm of the gradient before clipping, summed over the steps
    lr: float = 0.0  # of the last step
    seconds: float = 0.0

    def add(self, step: int, num_images: int, num_correct: int, loss: float, grad_norm: float, seconds: float) -> None:
        """Count what came since the last time, up to and with `step`."""
        self.grad_norm += grad_norm
        self.step = step
        self.num_images += num_images
        self.num_correct += num_correct
        self.loss += loss
        self.seconds += seconds

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
    look_every: int = 1,
) -> None:
    """Step through what is left of the loader's epoch, adding to `sums`; in `between_steps` all is fit to be saved.

    RunError where loss or gradient are not finite, before the step that would have spoilt the weights. Every
    `look_every` steps the host waits for the device and looks at the figures; steps in between that are not finite are
    left out by the (fused) optimizer itself.
    """
    model.train()
    device, num_steps = loader.images.device, len(loader)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    unseen = torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    unseen_images, start = 0, time.perf_counter()
    for step, (images, labels) in enumerate(loader, start=sums.step + 1):
        num_images = loader.images_in_step(step - 1)  # of all ranks; a rank's share of the last may be empty
        optimizer.zero_grad()  # before the forward pass, which in one process has the gradients' memory then
        with autocast(device, dtype):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing, reduction="sum")
        (loss * (distributed.world_size() / num_images)).backward()  # gradients are averaged over the ranks
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_grad_norm:
            nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, grad_norm)
        finite = loss.isfinite() & grad_norm.isfinite()
        likeliest = labels if labels.ndim == 1 else labels.argmax(dim=1)  # of a mixed image: the class with most of it
        correct = (logits.argmax(dim=1) == likeliest).sum()
        unseen += torch.stack([loss.detach(), correct, grad_norm / distributed.world_size(), ~finite])
        unseen_images += num_images

        look = step % look_every == 0 or step == num_steps
        if look:
            loss_sum, num_correct, norms, num_bad = distributed.add_up(unseen).tolist()
            if num_bad:
                raise not_finite(loss, grad_norm, loader.epoch + 1, sums.step + 1, step)
        optimizer.found_inf = None if look else (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
        sums.lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        if look:
            now = time.perf_counter()
            sums.add(step, unseen_images, int(num_correct), loss_sum, norms, now - start)
            figures = sums.figures()
            progress.update(step, unseen_images, figures["train_loss"], figures["train_acc"], sums.lr)
            unseen, unseen_images, start = torch.zeros_like(unseen), 0, now
            between_steps()


def not_finite(loss: Tensor, grad_norm: Tensor, epoch: int, first_batch: int, batch: int) -> RunError:
    """The error of a loss or gradient that is infinite or no number; `first_batch` is the first it can have been in."""
    values = {"loss": loss.item(), "gradient's norm": grad_norm.item()}
    bad = [f"the {name} became {value}" for name, value in values.items() if not math.isfinite(value)]
    where = f"batch {batch}" if first_batch == batch else f"batches {first_batch} to {batch}"
    return RunError(
        f"{bad[0] if bad else 'loss or gradient were not finite'} in {where} of epoch {epoch}; what was saved is "
        "untouched. Start anew with a lower --learning-rate, --clip-grad-norm 1 or --precision fp32"
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
    """Mean cross-entropy (nats) and accuracy (percent) over all images, named by their split: test_loss, test_acc.

    RunError where the loss is not finite, so that no such model is saved.
    """
    logits, labels = predict(model, loader, dtype, between_batches)
    sums = [F.cross_entropy(logits.double(), labels, reduction="sum"), (logits.argmax(dim=1) == labels).sum()]
    loss_sum, correct = distributed.add_up(torch.stack(sums)).tolist()
    if not math.isfinite(loss_sum):
        raise RunError(
            f"the {loader.split} loss became {loss_sum}: start anew with a lower --learning-rate, or --clip-grad-norm 1"
        )
    num_images = len(loader.images)
    return {f"{loader.split}_loss": loss_sum / num_images, f"{loader.split}_acc": 100 * int(correct) / num_images}
