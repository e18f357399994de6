"""What a run says while it goes on."""

import errno
import io
import re

import pytest

from training.console import (
    TrainProgress,
    format_time,
    print_best,
    print_epoch_header,
    print_summary,
    print_warning,
    say,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3600, "1 h 00 min"),
        (54321, "15 h 05 min"),
    ],
)
def test_times_are_in_units_that_fit(seconds, text):
    assert format_time(seconds) == text


def test_without_a_terminal_every_hundredth_batch_has_its_line_and_the_first_ones_an_estimate(capsys):
    progress = TrainProgress(num_batches=250, num_images=16_000, epochs_left=3)
    for batch in range(1, 251):
        progress.update(batch, 64, loss=2.12344, acc=25.338, lr=0.0001)
    progress.close()
    estimate, *lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  \d+ images/s: about .* for the training steps of 3 epochs", estimate)
    assert lines == [f"  Batch [{n}/250] | Loss: 2.1234 | Acc: 25.34% | LR: 0.000100" for n in (100, 200)]


def test_progress_that_begins_amid_an_epoch_counts_its_batches_and_times_its_own(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = TrainProgress(num_batches=250, num_images=16_000, batches_done=90, epochs_left=1)
    for batch in range(91, 111):
        now += 0.5
        assert "images/s" not in capsys.readouterr().out
        progress.update(batch, 64, loss=2.12344, acc=25.338, lr=0.0001)
        if batch == 100:
            assert capsys.readouterr().out == "  Batch [100/250] | Loss: 2.1234 | Acc: 25.34% | LR: 0.000100\n"
    progress.close()
    left = "1 min 20 s"  # for 16,000 - 90 * 64 images
    assert capsys.readouterr().out == f"  128 images/s: about {left} for the training steps of 1 epoch\n"


def test_the_estimate_is_the_time_of_the_images_left(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = TrainProgress(num_batches=200, num_images=12_800, epochs_left=2)
    for batch in range(1, 21):
        now += 60 if batch <= 2 else 0.5  # the first two set things up
        progress.update(batch, 64, loss=2.0, acc=25.0, lr=0.0001)
    assert capsys.readouterr().out == "  128 images/s: about 3 min 20 s for the training steps of 2 epochs\n"


def test_the_estimate_counts_epochs_of_larger_images_four_times(monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = TrainProgress(num_batches=20, num_images=1280, epochs_left=5, larger_left=2)
    for batch in range(1, 21):
        now += 1.0
        progress.update(batch, 64, loss=2.0, acc=25.0, lr=0.0001)
    assert capsys.readouterr().out.startswith(f"  64 images/s: about {format_time(20 * (3 + 2 * 4))} for the training")


def test_a_bar_that_begins_amid_an_epoch_begins_there(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    progress = TrainProgress(num_batches=200, num_images=12_800, batches_done=100)
    for batch in range(101, 151):
        progress.update(batch, 64, loss=2.0, acc=25.0, lr=0.0001)
    progress.bar.refresh()
    progress.close()
    assert "9600/12800" in capsys.readouterr().out


class Lost(io.StringIO):
    """A console that takes no byte."""

    def __init__(self, code: int):
        super().__init__()
        self.code = code

    def flush(self) -> None:
        raise OSError(self.code, "takes nothing")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_or_a_lost_terminal_takes_nothing_and_ends_nothing(code, monkeypatch):
    """As nohup.out may be on the disk that the run has filled."""
    monkeypatch.setattr("sys.stdout", Lost(code))
    print_epoch_header(1, 2)
    progress = TrainProgress(num_batches=200, num_images=12_800, epochs_left=1)
    for batch in range(1, 101):
        progress.update(batch, 64, loss=2.0, acc=25.0, lr=0.0001)
    progress.close()
    metrics = dict.fromkeys(["train_loss", "train_acc", "test_loss", "test_acc", "lr", "epoch_time"], 1.0)
    print_summary(metrics, "test", new_best=True)
    print_best({"epoch": [1], "test_acc": [1.0]}, "test", "run")


def test_a_reader_that_has_left_is_not_passed_over(monkeypatch):
    monkeypatch.setattr("sys.stdout", Lost(errno.EPIPE))
    with pytest.raises(BrokenPipeError):
        say("something")


def test_a_warning_is_a_loud_line_on_stderr(capsys):
    print_warning("the disk is full")
    assert capsys.readouterr() == ("", "WARNING: the disk is full\n")


def test_a_terminal_shows_a_bar_with_images_per_second_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    progress = TrainProgress(num_batches=200, num_images=12_800)
    for batch in range(1, 151):
        progress.update(batch, 64, loss=2.0, acc=25.0, lr=0.0001)
    progress.bar.refresh()
    progress.close()
    shown = capsys.readouterr().out
    assert "9600/12800" in shown
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, +[\d.]+k? images/s, loss 2.0000, acc 25.00%", shown)
    assert "Batch [" not in shown


@pytest.mark.parametrize(("saved", "said"), [(True, "Saved checkpoint."), (False, "NOT saved: see the warning.")])
def test_a_best_model_that_the_disk_did_not_take_is_not_called_saved(saved, said, capsys):
    metrics = dict.fromkeys(["train_loss", "train_acc", "test_loss", "test_acc", "lr", "epoch_time"], 1.0)
    print_summary(metrics, "test", new_best=True, saved=saved)
    assert capsys.readouterr().out.endswith(f"✓ New best accuracy! {said}\n")
