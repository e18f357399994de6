"""Shows a run in TensorBoard while it goes on: `tensorboard --logdir checkpoints`."""

import contextlib
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from training.console import print_warning
from training.errors import UsageError, first_line


def require_tensorboard() -> None:
    """UsageError if the package is not installed."""
    if find_spec("tensorboard") is None:
        raise UsageError("--tensorboard needs one more package: pip install tensorboard, or leave out --tensorboard")


class TensorBoard:
    """Writes a run's metrics to its folder, and first the contact sheet of augmented images.

    If a write fails, it warns once and writes no more; the run goes on.
    """

    def __init__(self, folder: Path, epochs_done: int):
        self.writer = None
        with self.giving_up():
            from torch.utils.tensorboard import SummaryWriter  # its import takes a second, and is needed only here

            # a resumed run replaces what an earlier one wrote after the checkpoint
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)
            if (sheet := folder / "augmented_images.png").exists():
                with Image.open(sheet) as image:
                    self.writer.add_image(sheet.stem, np.array(image.convert("RGB")), dataformats="HWC")

    @contextlib.contextmanager
    def giving_up(self) -> Iterator[None]:
        """Inside it, an error is a warning, and the last thing that TensorBoard does."""
        try:
            yield
        except Exception as error:  # the writer's thread hands on any error that ended it, at any later call
            self.writer = None
            with contextlib.suppress(OSError):  # the console may be a file on the same disk
                print_warning(f"can't write for TensorBoard: {first_line(error)}. The run goes on without it")

    def write_epoch(self, metrics: dict[str, float], grad_norm: float) -> None:
        """Show an epoch's row of the history, and the mean L2 norm of its gradients before clipping."""
        with self.giving_up():
            for name, value in {**metrics, "grad_norm": grad_norm}.items():
                kind = name.rpartition("_")[2]
                tag = f"{kind}/{name}" if kind in ("loss", "acc") else name  # all losses in one group, all accuracies
                if self.writer and name != "epoch":
                    self.writer.add_scalar(tag, value, int(metrics["epoch"]))
            if self.writer:
                self.writer.flush()

    def close(self) -> None:
        with self.giving_up():
            if self.writer:
                self.writer.close()


@contextlib.contextmanager
def tensorboard(folder: Path, epochs_done: int) -> Iterator[TensorBoard]:
    """A run's TensorBoard, which is closed at the end."""
    print_traceback = threading.excepthook

    def on_thread_error(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):  # its errors come as a warning
            print_traceback(args)

    threading.excepthook = on_thread_error
    board = TensorBoard(folder, epochs_done)
    try:
        yield board
    finally:
        board.close()
        threading.excepthook = print_traceback
