"""A full, forbidden or vanished disk ends no run and spoils no file; a line says how much room is needed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from runs import EACH_STEP, NEVER, STEPS, TINY, TRAIN, assert_one_line, assert_same_run, content_of

STEP = "training.console:TrainProgress.update"
NOBODY = 65534


def pauses(*steps: int) -> list[tuple]:
    return [("signal_at", STEP, step, signal.SIGSTOP) for step in steps]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a disk of a given size."""
    mounted = []

    def mount(size: str) -> Path:
        path = tmp_path / f"disk{len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("can't mount a small disk here")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


class FullDisk:
    """Fills the disk to its last byte, until it is lifted."""

    def __init__(self, run, folder: Path):
        self.ballast = folder.parent / "ballast"
        with open(self.ballast, "wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def lift(self) -> None:
        self.ballast.unlink()


class Limit:
    """Limits the size of a process's files to less than a checkpoint, until it is lifted."""

    def __init__(self, run, folder: Path):
        self.pid = run.pid
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    def lift(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def assert_loud(err: str) -> None:
    """Assert that there are only warnings, each with the room that the run needs."""
    assert err
    for line in err.splitlines():
        assert line.startswith("WARNING: can't write ")
        assert "untouched" in line
        assert " MiB" in line


@pytest.mark.parametrize("block", [FullDisk, Limit])
@pytest.mark.parametrize("last", [STEPS + 5, 3 * STEPS], ids=["till epoch 2", "till the last step"])
def test_a_run_goes_on_without_its_disk_and_saves_when_there_is_room(
    launcher, unbroken, small_disk, tmp_path, trying, block, last
):
    folder = (small_disk("12m") if block is FullDisk else tmp_path) / "run"
    with trying("full disk, or a limit on files, in mid-run"):
        command = [TRAIN, *TINY, EACH_STEP, "--output-dir", folder]
        run = launcher.start(*command, sabotages=pauses(5, last))
        run.wait_for_pause()
        before = content_of(folder)
        blocked = block(run, folder)
        run.go_on()
        run.wait_for_pause()
        now = content_of(folder)
        assert now.keys() == before.keys()
        for name in ("last.pth", "last.prev.pth"):
            assert now[name] == before[name]
        assert_loud(run.err.read_text())
        assert "New best accuracy! NOT saved" in run.out.read_text()
        assert "Saved checkpoint" not in run.out.read_text()
        blocked.lift()
        run.go_on()
        result = run.wait()
        assert result.code == 0
        assert_loud(result.err)
        assert_same_run(folder, unbroken)


def test_a_run_that_ends_with_a_full_disk_says_so_and_is_resumed(launcher, unbroken, small_disk, trying):
    folder = small_disk("12m") / "run"
    with trying("full disk, or a limit on files, in mid-run"):
        command = [TRAIN, *TINY, EACH_STEP, "--output-dir", folder]
        run = launcher.start(*command, sabotages=pauses(STEPS + 5))
        run.wait_for_pause()
        before = content_of(folder)
        blocked = FullDisk(run, folder)
        run.go_on()
        result = run.wait()
        *warnings, error = result.err.splitlines(keepends=True)
        assert result.code == 1
        assert_loud("".join(warnings))
        assert_one_line(error, "--resume", str(folder))
        assert content_of(folder)["last.pth"] == before["last.pth"]
        assert not list(folder.glob(".*.tmp"))
        blocked.lift()
        assert launcher.run(*command, "--resume").code == 0
        assert_same_run(folder, unbroken)


def test_a_run_whose_last_weights_are_not_saved_does_not_look_finished(launcher, unbroken, folder, trying):
    """Its history, of a few bytes, would fit."""
    with trying("full disk, or a limit on files, in mid-run"):
        command = [TRAIN, *TINY, NEVER, "--output-dir", folder]
        run = launcher.start(*command, sabotages=pauses(3 * STEPS))
        run.wait_for_pause()
        Limit(run, folder)
        run.go_on()
        assert run.wait().code == 1
        assert len(json.loads((folder / "training_history.json").read_text())["epoch"]) == 2
        assert launcher.run(*command, "--resume").code == 0
        assert_same_run(folder, unbroken)


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(launcher, small_disk, trying):
    folder = small_disk("2m") / "run"
    with trying("full disk, or a limit on files, at the start"):
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder)
        assert (result.code, result.out) == (1, "")
        assert_one_line(result.err, str(folder), "needs", "MiB")
        assert not folder.exists()


def test_a_limit_on_the_size_of_files_is_refused_before_the_first_step(launcher, folder, trying):
    with trying("full disk, or a limit on files, at the start"):
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, file_size=20_000)
        assert (result.code, result.out) == (1, "")
        assert_one_line(result.err, str(folder))
        assert not folder.exists()


@pytest.mark.parametrize("flags", [["--resume"], ["--overwrite"], []], ids=["resume", "overwrite", "new"])
def test_a_folder_that_may_not_be_written_to_is_refused(launcher, unbroken, trying, flags):
    with tempfile.TemporaryDirectory() as place, trying("a folder that can't be written to"):
        folder = Path(place) / "run"
        if flags:
            shutil.copytree(unbroken, folder)
            folder.chmod(0o555)
        Path(place).chmod(0o555)  # another user can't even look into pytest's own folders
        before = content_of(Path(place))
        user = NOBODY if os.getuid() == 0 else None
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder, *flags, user=user)
        assert (result.code, result.out) == (1, "")
        assert_one_line(result.err, str(folder))
        assert content_of(Path(place)) == before
        for path in (Path(place), folder):
            if path.exists():
                path.chmod(0o755)


def test_a_file_in_the_folders_place_is_refused_and_stays(launcher, folder, trying):
    folder.write_text("in the way")
    with trying("a folder that can't be written to"):
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", folder)
        assert (result.code, result.out) == (1, "")
        assert_one_line(result.err, str(folder))
        assert folder.read_text() == "in the way"


def test_a_run_whose_folder_is_removed_goes_on_and_makes_it_again(launcher, unbroken, folder, trying):
    with trying("folder removed in mid-run"):
        run = launcher.start(TRAIN, *TINY, EACH_STEP, "--output-dir", folder, sabotages=pauses(5))
        run.wait_for_pause()
        shutil.rmtree(folder)
        run.go_on()
        assert run.wait().code == 0
        lost = {"config.json", "augmented_images.png"}  # a run writes them at its start only
        assert content_of(unbroken).keys() - content_of(folder).keys() == lost
        for name in lost:
            shutil.copy(unbroken / name, folder)
        assert_same_run(folder, unbroken)
