"""One process holds a run's folder; what a failing disk does not take is kept as it was, and written when it can be."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from training import checkpoint, run_folder
from training.errors import RunError, UsageError
from training.files import DiskError
from training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
HOLDER = (
    "import sys; from pathlib import Path; from training.run_folder import RunFolder\n"
    "with RunFolder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def folder(tmp_path, warnings):
    with RunFolder(tmp_path / "run", warnings.append) as held:
        yield held


def weights(epoch: int, value: float = 1.0) -> dict:
    return {"epoch": epoch, "model": {"weight": torch.full((3,), value)}}


def saved(folder: RunFolder) -> dict[str, tuple[int, list[float]]]:
    """What the checkpoints of the folder hold: epoch and weights."""
    contents = {path.name: checkpoint.load(path) for path in folder.path.glob("*.pth") if path.is_file()}
    return {name: (content["epoch"], content["model"]["weight"].tolist()) for name, content in contents.items()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_held(path: Path) -> None:
    """Refused, in one line, after a second's wait and not minutes later."""
    start = time.perf_counter()
    with pytest.raises(RunError, match=rf"{path} is in use by process \d+ on .*: .* --output-dir$") as caught:
        RunFolder(path).__enter__()
    assert time.perf_counter() - start < 15
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_another_process_holds_is_refused_by_its_name_until_that_dies(tmp_path):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        start = time.perf_counter()
        with pytest.raises(RunError) as caught:
            RunFolder(tmp_path).__enter__()
        assert time.perf_counter() - start < 15
        assert f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}, since 20" in str(caught.value)
        holder.send_signal(signal.SIGKILL)
    assert names(tmp_path) == {".lock", ".lock-owner"}  # it had no time to tidy up
    with RunFolder(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock-owner").read_text()


def test_a_run_of_a_suite_waits_longer_for_the_folder(tmp_path, monkeypatch):
    """The suite's command may be given again while a run of the one that was killed still ends."""
    monkeypatch.setenv(run_folder.PARENT, str(os.getpid()))
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT", 0)
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        threading.Timer(1, holder.kill).start()
        with RunFolder(tmp_path):
            pass


def test_one_process_cannot_hold_a_folder_twice_and_can_hold_two(folder, tmp_path):
    assert_held(folder.path)
    with RunFolder(tmp_path / "other"):
        assert_held(tmp_path / "other")
    assert_held(folder.path)  # one that was refused took nothing away


def test_a_folder_left_is_free_and_holds_the_run_alone(tmp_path):
    for epoch in (1, 2):
        with RunFolder(tmp_path) as folder:
            folder.save({"last.pth": weights(epoch)})
    assert names(tmp_path) == {"last.pth", "last.prev.pth"}


def test_a_folder_and_its_parents_are_removed_when_left_empty_and_only_those_it_made(tmp_path):
    path = tmp_path / "there" / "a" / "b"
    (tmp_path / "there").mkdir()
    with RunFolder(path):
        assert path.is_dir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    path.mkdir(parents=True)
    with RunFolder(path):
        pass
    assert path.is_dir()
    path.rmdir()
    with RunFolder(path):
        (path.parent / "of somebody else").touch()
    assert list(tmp_path.rglob("*.*")) == []
    assert names(path.parent) == {"of somebody else"}
    with RunFolder(path):
        (path / "config.json").touch()
    assert names(path) == {"config.json"}


def test_what_a_killed_run_left_half_written_is_removed_by_the_next_that_holds_the_folder(tmp_path):
    half = tmp_path / ".last.pth.123.tmp"
    (tmp_path / "last.pth").touch()
    with RunFolder(tmp_path):
        half.touch()
        assert_held(tmp_path)
        assert half.exists()  # one that is refused removes nothing
    assert half.exists()
    with RunFolder(tmp_path):
        assert not half.exists()
    assert names(tmp_path) == {"last.pth"}


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"file/run.*--output-dir"):
        RunFolder(tmp_path / "file" / "run").__enter__()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(DiskError, match="can't lock the folder"):
        RunFolder(tmp_path).__enter__()


def test_a_folder_whose_name_is_too_long_is_one_line(tmp_path):
    with pytest.raises(DiskError, match=r"can't write to the folder .*--output-dir"):
        RunFolder(tmp_path / ("x" * 300) / "run").__enter__()


def test_temporary_files_of_others_stay(tmp_path):
    (tmp_path / ".notes.tmp").touch()
    (tmp_path / ".last.pth.77.tmp").mkdir()
    with RunFolder(tmp_path):
        pass
    assert names(tmp_path) == {".notes.tmp", ".last.pth.77.tmp"}


@pytest.mark.parametrize("name", ["config.json", "last.pth", "best_model.pth", "training_history.json"])
def test_a_folder_with_a_run_is_refused_with_the_flags_that_help(folder, name):
    (folder.path / "note.txt").touch()
    folder.refuse_used()
    (folder.path / name).touch()
    with pytest.raises(UsageError, match=r"--resume.*--overwrite.*--output-dir"):
        folder.refuse_used()


def test_weights_that_are_left_of_a_run_are_moved_aside_too(folder):
    (folder.path / "best_model.pth").write_text("the only copy")
    folder.move_aside()
    [aside] = folder.path.glob("old-*")
    assert (aside / "best_model.pth").read_text() == "the only copy"


def test_the_files_of_a_run_are_moved_aside_and_no_others(folder, capsys):
    run = {
        "config.json", "last.pth", "last.prev.pth", "best_model.pth", "checkpoint_epoch_5.pth", "final_model.pth",
        "training_history.json", "test_result.json", "training_curves.png", "augmented_images.png",
        "evaluation.json", "predictions.csv", "report.html",
    }  # fmt: skip
    for name in {*run, "note.txt"}:
        (folder.path / name).write_text(f"old {name}")
    (folder.path / "evaluation").mkdir()
    (folder.path / "evaluation" / "report.html").touch()
    folder.move_aside()
    [aside] = folder.path.glob("old-*")
    assert names(aside) == run | {"evaluation"}
    assert (aside / "last.pth").read_text() == "old last.pth"
    assert names(folder.path) == {"note.txt", ".lock", ".lock-owner", aside.name}
    assert str(aside) in capsys.readouterr().out
    folder.refuse_used()


def test_runs_moved_aside_at_the_same_second_do_not_meet_and_where_there_is_none_nothing_is_moved(folder, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20261122-120000")
    (folder.path / "note.txt").touch()
    folder.move_aside()
    assert names(folder.path) == {"note.txt", ".lock", ".lock-owner"}
    for number in range(3):
        (folder.path / "config.json").write_text(str(number))
        folder.move_aside()
    asides = sorted(folder.path.glob("old-*"))
    assert [(aside / "config.json").read_text() for aside in asides] == ["0", "1", "2"]


def test_a_run_that_cannot_be_moved_aside_is_one_line(folder, monkeypatch):
    def fail(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    (folder.path / "config.json").touch()
    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(RunError, match=r"can't move .* aside: .*Read-only"):
        folder.move_aside()


@pytest.mark.parametrize(("num_states", "num_kept"), [(1, 3), (2, 3), (2, 50)])
@pytest.mark.parametrize("resumed", [True, False])
def test_a_disk_without_room_for_all_files_at_once_is_refused_to_the_byte(
    folder, monkeypatch, num_states, num_kept, resumed
):
    model = nn.Sequential(nn.Linear(300, 100), nn.BatchNorm1d(100))  # buffers are saved too
    size = 4 * (300 * 100 + 100 + 4 * 100) + 8
    needed = num_kept * size + 3 * (1 + num_states) * size + 8 * 2**20
    for name, length in (("last.pth", 70_000), ("best_model.pth", 5000), ("training_curves.png", 900)):
        (folder.path / name).write_bytes(bytes(length))
    asked = []

    def set_free(free: int) -> None:
        monkeypatch.setattr(
            run_folder.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=free)
        )

    enough = needed - 75_000 if resumed else needed
    set_free(enough)
    folder.require_space(model, num_states, num_kept, resumed)
    set_free(enough - 1)
    words = (
        rf"needs {needed / 2**20:.0f} MiB in {folder.path}, where {(enough - 1) / 2**20:.0f} MiB are free: .*--output"
    )
    with pytest.raises(RunError, match=words) as caught:
        folder.require_space(model, num_states, num_kept, resumed)
    assert len(str(caught.value).splitlines()) == 1
    assert asked == [folder.path] * 2


def test_a_save_is_due_when_the_last_one_is_long_enough_ago_and_never_at_0_minutes(folder):
    folder.saved_at -= 60 * 4
    assert not folder.save_due(5)
    folder.saved_at -= 60 * 2
    assert folder.save_due(5)
    assert not folder.save_due(0)
    folder.save({"last.pth": weights(1)})
    assert not folder.save_due(5)
    assert not folder.save_due(0)


def test_what_is_saved_is_there_and_the_last_state_before_it_too(folder, warnings):
    assert folder.save({"last.pth": weights(1), "best_model.pth": weights(1)})
    assert folder.save({"last.pth": weights(2)})
    ones = [1.0] * 3
    assert saved(folder) == {"best_model.pth": (1, ones), "last.pth": (2, ones), "last.prev.pth": (1, ones)}
    assert warnings == []


def full_disk(monkeypatch) -> None:
    def fail(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


def test_a_full_disk_is_a_loud_line_and_what_it_did_not_take_is_written_later_as_it_was(folder, warnings, monkeypatch):
    folder.needed = 5 << 20
    folder.save({"last.pth": weights(1)})
    best, live = weights(2), weights(2)
    with monkeypatch.context() as patched:
        full_disk(patched)
        assert not folder.save({"last.pth": live, "best_model.pth": best})
        best["model"]["weight"].mul_(7)  # the run goes on
        assert not folder.save({"last.pth": weights(3), "checkpoint_epoch_3.pth": weights(3, 3.0)})
    assert saved(folder) == {"last.pth": (1, [1.0] * 3)}
    assert len(warnings) == 2
    assert "best_model.pth: [Errno 28] No space left on device; what was saved before is untouched. " in warnings[0]
    assert "The run needs 5 MiB there in all; it goes on" in warnings[0]
    assert folder.save({"last.pth": weights(4, 4.0)})
    assert saved(folder) == {
        "best_model.pth": (2, [1.0] * 3), "checkpoint_epoch_3.pth": (3, [3.0] * 3), "last.pth": (4, [4.0] * 3),
        "last.prev.pth": (1, [1.0] * 3),
    }  # fmt: skip
    assert folder.save({"last.pth": weights(5)})
    assert saved(folder)["best_model.pth"] == (2, [1.0] * 3)
    assert len(warnings) == 2


def test_of_two_that_were_not_taken_the_newer_is_written(folder, monkeypatch):
    with monkeypatch.context() as patched:
        full_disk(patched)
        for epoch in (1, 2):
            folder.save({"last.pth": weights(epoch), "best_model.pth": weights(epoch)})
    assert folder.save({})
    assert saved(folder) == {"best_model.pth": (2, [1.0] * 3)}  # and no last.pth of a moment that is gone


def test_the_state_to_resume_from_is_written_only_after_all_that_came_before_it(folder, warnings):
    folder.save({"last.pth": weights(1)})
    (folder.path / "best_model.pth").mkdir()  # in its way
    assert not folder.save({"last.pth": weights(2), "best_model.pth": weights(2), "final_model.pth": weights(2)})
    assert not folder.save({"last.pth": weights(3)})
    assert saved(folder)["last.pth"] == (1, [1.0] * 3)
    assert len(warnings) == 2
    (folder.path / "best_model.pth").rmdir()
    assert folder.save({"last.pth": weights(4)})
    assert {name: epoch for name, (epoch, _) in saved(folder).items()} == {
        "best_model.pth": 2, "final_model.pth": 2, "last.pth": 4, "last.prev.pth": 1,
    }  # fmt: skip


def test_a_folder_that_was_removed_meanwhile_is_made_and_locked_again(folder, warnings):
    folder.save({"last.pth": weights(1)})
    shutil.rmtree(folder.path)
    assert folder.save({"last.pth": weights(2)})
    assert {name: epoch for name, (epoch, _) in saved(folder).items()} == {"last.pth": 2}
    assert_held(folder.path)
    assert warnings == []


def test_a_folder_that_was_removed_and_that_another_run_took_is_left_to_that(folder):
    shutil.rmtree(folder.path)
    with RunFolder(folder.path):
        with pytest.raises(RunError, match="is in use by"):
            folder.save({"last.pth": weights(2)})
        assert not (folder.path / "last.pth").exists()


def test_a_disk_that_was_away_for_a_save_leaves_the_folder_locked(folder, warnings, monkeypatch):
    with monkeypatch.context() as away:
        away.setattr(run_folder, "identity", fail_to_look)
        assert not folder.save({"last.pth": weights(1)})
    assert len(warnings) == 1
    assert folder.save({"last.pth": weights(2)})
    assert_held(folder.path)


def fail_to_look(path: Path) -> tuple[int, int]:
    raise OSError(errno.ESTALE, "stale file handle")


def test_leaving_a_folder_that_another_run_took_leaves_it_locked_for_that(tmp_path):
    with RunFolder(tmp_path / "run") as first:
        shutil.rmtree(first.path)
        second = RunFolder(first.path).__enter__()
    try:
        assert_held(second.path)
    finally:
        second.__exit__()


@pytest.mark.parametrize("name", ["best_model.pth", "last.pth"])
def test_weights_that_are_not_finite_are_refused_and_that_is_not_swallowed(folder, warnings, name):
    folder.save({"last.pth": weights(1), "best_model.pth": weights(1)})
    before = saved(folder)
    with pytest.raises(RunError, match="weight is not finite") as caught:
        folder.save({name: weights(2, torch.nan), "last.pth": weights(2, torch.nan)})
    assert not isinstance(caught.value, DiskError)
    assert saved(folder) == before
    assert warnings == []


def test_other_files_that_the_disk_does_not_take_do_not_end_the_run_and_other_errors_do(folder, warnings):
    with folder.tolerating_disk_errors():
        raise DiskError("can't write training_history.json")
    assert len(warnings) == 1
    assert warnings[0].startswith("can't write training_history.json. The run needs ")
    for error in (RunError, KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), folder.tolerating_disk_errors():
            raise error
