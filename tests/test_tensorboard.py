"""TensorBoard is given the history's own figures, once for each epoch, also after a resume."""

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import tensorboard as module
from training.errors import UsageError
from training.history import new_history
from training.tensorboard import require_tensorboard, tensorboard


def figures_of(epoch: int, value: float) -> dict[str, float]:
    return dict.fromkeys(new_history("test"), value) | {"epoch": epoch}


def read(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_each_epochs_figures_and_the_contact_sheet_are_written(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "augmented_images.png")
    with tensorboard(tmp_path, epochs_done=0) as board:
        for epoch in (1, 2):
            board.write_epoch(figures_of(epoch, epoch / 4), grad_norm=epoch * 3.0)
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
                board.write_epoch(figures_of(epoch, value), grad_norm=1.0)
    events = read(tmp_path).Scalars("lr")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.5), (3, 0.5)]


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        require_tensorboard()
