"""What TensorBoard shows of a run while it goes on: `tensorboard --logdir checkpoints`."""

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from training.errors import UsageError


def require_tensorboard() -> None:
    """UsageError where the package is not installed."""
    if find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs a package more: pip install tensorboard, or leave it out")


class TensorBoard:
    """Writes to a run's folder; of a run that is resumed, what came after its checkpoint is replaced."""

    def __init__(self, folder: Path, epochs_done: int):
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and only this needs it

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def write_picture(self, path: Path) -> None:
        """A PNG file, such as the contact sheet of augmented images, under its own name."""
        if path.exists():
            with Image.open(path) as image:
                self.writer.add_image(path.stem, np.array(image.convert("RGB")), dataformats="HWC")

    def write_epoch(self, figures: dict[str, float], grad_norm: float) -> None:
        """An epoch's row of the history, and the mean L2 norm of its gradients before clipping."""
        for name, value in {**figures, "grad_norm": grad_norm}.items():
            kind = name.rpartition("_")[2]
            tag = f"{kind}/{name}" if kind in ("loss", "acc") else name  # losses side by side, and accuracies
            if name != "epoch":
                self.writer.add_scalar(tag, value, int(figures["epoch"]))
        with contextlib.suppress(OSError):  # a full disk must not end the run
            self.writer.flush()


@contextlib.contextmanager
def tensorboard(folder: Path, epochs_done: int) -> Iterator[TensorBoard]:
    """A run's TensorBoard with its contact sheet, closed at the end."""
    board = TensorBoard(folder, epochs_done)
    try:
        board.write_picture(folder / "augmented_images.png")
        yield board
    finally:
        with contextlib.suppress(OSError):
            board.writer.close()
