"""TensorBoard gets each epoch's metrics once, also after a resume, and a disk that fails does not end the run."""

import runpy
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from training import tensorboard as module
from training.errors import UsageError
from training.history import new_history
from training.tensorboard import require_tensorboard, tensorboard

ROOT = Path(__file__).parent.parent


def metrics_of(epoch: int, value: float) -> dict[str, float]:
    return dict.fromkeys(new_history("test"), value) | {"epoch": epoch}


def read(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_each_epochs_metrics_and_the_contact_sheet_are_written(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "augmented_images.png")
    with tensorboard(tmp_path, epochs_done=0) as board:
        for epoch in (1, 2):
            board.write_epoch(metrics_of(epoch, epoch / 4), grad_norm=epoch * 3.0)
    written = read(tmp_path)
    names = {"loss/train_loss", "acc/train_acc", "loss/test_loss", "acc/test_acc", "lr", "epoch_time"}
    assert set(written.Tags()["scalars"]) == names | {"images_per_second", "grad_norm"}
    assert [(event.step, event.value) for event in written.Scalars("loss/train_loss")] == [(1, 0.25), (2, 0.5)]
    assert [(event.step, event.value) for event in written.Scalars("grad_norm")] == [(1, 3.0), (2, 6.0)]
    [image] = written.Images("augmented_images")
    assert (image.width, image.height) == (20, 10)


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path):
    for done, epochs, value in ((0, (1, 2, 3), 0.25), (1, (2, 3), 0.5)):
        with tensorboard(tmp_path, done) as board:
            for epoch in epochs:
                board.write_epoch(metrics_of(epoch, value), grad_norm=1.0)
    events = read(tmp_path).Scalars("lr")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.5), (3, 0.5)]


def fill_the_disk_after(num_writes: int, monkeypatch) -> list[str]:
    """From now on, what TensorBoard's thread writes goes to a full disk, after so many writes that succeed."""
    write, written = LocalFileSystem._write, []

    def write_or_fail(self, filename: str, content: bytes, mode: str) -> None:
        written.append(filename)
        write(self, filename if len(written) <= num_writes else "/dev/full", content, mode)

    monkeypatch.setattr(LocalFileSystem, "_write", write_or_fail)
    return written


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # its traceback would be printed
@pytest.mark.parametrize("num_writes", [0, 1, 2, 3, 8, 12])
def test_on_a_full_disk_there_is_one_warning_and_nothing_more_is_written(num_writes, tmp_path, monkeypatch, capfd):
    """The first two writes are the file's header and the start of the run, the third the contact sheet."""
    Image.new("RGB", (20, 10), "red").save(tmp_path / "augmented_images.png")
    written = fill_the_disk_after(num_writes, monkeypatch)
    with tensorboard(tmp_path, epochs_done=0) as board:
        for epoch in (1, 2, 3):
            board.write_epoch(metrics_of(epoch, 0.5), grad_norm=1.0)
    said = capfd.readouterr().err
    assert said.count("WARNING: ") == 1
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert len(written) == num_writes + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_run_whose_tensorboard_meets_a_full_disk_goes_on_to_its_end(tmp_path, monkeypatch, capfd):
    fill_the_disk_after(3, monkeypatch)
    folder = tmp_path / "run"
    flags = ["--preset=demo", "--num-epochs=2", "--warmup-epochs=1", "--depth=1", "--embed-dim=24", "--device=cpu"]
    flags += ["--max-train-images=64", "--tensorboard", "--compile=False", "--output-dir", str(folder)]
    monkeypatch.setattr(sys, "argv", ["train_vit_cifar10.py", *flags])
    runpy.run_path(str(ROOT / "train_vit_cifar10.py"), run_name="__main__")
    assert capfd.readouterr().err.count("WARNING: can't write for TensorBoard") == 1
    assert (folder / "final_model.pth").exists()


def test_an_error_in_another_thread_is_still_printed(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(args.exc_type))
    with tensorboard(tmp_path, epochs_done=0):
        thread = threading.Thread(target=divmod, args=(1, 0))
        thread.start()
        thread.join()
    assert printed == [ZeroDivisionError]


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        require_tensorboard()
