"""What a run prints: a bar or lines for the batches, the epoch's summary, warnings."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_EVERY = 100  # batches, where there is no terminal for a bar
TIMED_BATCHES = 20  # the run's time is estimated after so many; the first two are not counted


def format_time(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s or 12 s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def counted(number: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def say(text: str, stream: TextIO | None = None) -> None:
    """Print, above a progress bar too. A full disk or a terminal that is gone takes nothing, and ends nothing."""
    file: TextIO = stream or sys.stdout
    try:
        tqdm.write(text, file)
        file.flush()
    except BrokenPipeError:  # nobody reads it: see exit_codes
        raise
    except OSError:
        pass


def print_warning(text: str) -> None:
    """Print a warning on stderr, on a line of its own where a progress bar is drawn."""
    say(f"WARNING: {text}", sys.stderr)


def print_epoch_header(epoch: int, num_epochs: int) -> None:
    say(f"\nEpoch [{epoch}/{num_epochs}]\n{'-' * 70}")


def print_summary(metrics: dict[str, float], split: str, new_best: bool, saved: bool = True) -> None:
    """The end of an epoch: its metrics, and whether its model is the best so far and was saved."""
    label = split.capitalize()
    lines = [
        "",
        "  Epoch Summary:",
        f"    Train Loss: {metrics['train_loss']:.4f} | Train Acc: {metrics['train_acc']:5.2f}%",
        f"    {label + ' Loss:':<11} {metrics[f'{split}_loss']:.4f} | "
        f"{label + ' Acc:':<10} {metrics[f'{split}_acc']:5.2f}%",
        f"    Learning Rate: {metrics['lr']:.6f}",
        f"    Time: {metrics['epoch_time']:.1f}s",
    ]
    if new_best:
        lines.append(f"    ✓ New best accuracy! {'Saved checkpoint.' if saved else 'NOT saved: see the warning.'}")
    say("\n".join(lines))


def print_best(records: dict[str, list[float]], split: str, folder: str) -> None:
    """The end of a run."""
    best = max(records[f"{split}_acc"])
    epoch = records["epoch"][records[f"{split}_acc"].index(best)]
    say(f"\nBest {split} accuracy: {best:.2f}% in epoch {epoch}. The run is in {folder}")


class TrainProgress:
    """The batches of one epoch: a bar with images/s and time left on a terminal, a line every 100 batches elsewhere.

    `batches_done` is where a resumed run goes on. With `epochs_left` above 0 (this epoch included) it prints an
    estimate of the time that they take, once the first batches are timed; `larger_left` of them have images of twice
    this epoch's height and width, and are counted four times.
    """

    def __init__(
        self, num_batches: int, num_images: int, batches_done: int = 0, epochs_left: int = 0, larger_left: int = 0
    ):  # fmt: skip
        self.num_batches, self.num_images = num_batches, num_images
        self.epochs_left, self.images_left = epochs_left, (epochs_left + 3 * larger_left) * num_images
        self.batches_done, self.images_done = batches_done, num_images * batches_done // num_batches
        self.timed_images, self.started = 0, None
        self.bar = tqdm(
            total=num_images, initial=self.images_done, unit=" images", disable=not sys.stdout.isatty(), leave=False,
            file=sys.stdout,
        )  # fmt: skip

    def update(self, batch: int, num_images: int, loss: float, acc: float, lr: float) -> None:
        """After batch number `batch` (from 1): mean loss and accuracy in percent of the epoch so far."""
        self.bar.set_postfix_str(f"loss {loss:.4f}, acc {acc:.2f}%", refresh=False)
        self.bar.update(num_images)
        if self.bar.disable and batch % LINE_EVERY == 0:
            say(f"  Batch [{batch}/{self.num_batches}] | Loss: {loss:.4f} | Acc: {acc:.2f}% | LR: {lr:.6f}")
        if self.epochs_left:
            self._estimate(batch - self.batches_done, num_images)

    def _estimate(self, count: int, num_images: int) -> None:
        if self.started is None:
            if count >= 2:  # the first two also set things up
                self.started = time.perf_counter()
            return
        self.timed_images += num_images
        if count >= min(TIMED_BATCHES, self.num_batches - self.batches_done):
            rate = self.timed_images / (time.perf_counter() - self.started)
            left = format_time((self.images_left - self.images_done) / rate)
            speed = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
            say(f"  {speed} images/s: about {left} for the training steps of {counted(self.epochs_left, 'epoch')}")
            self.epochs_left = 0

    def close(self) -> None:
        self.bar.close()
