"""A file is whole or not there: written beside its place, flushed, renamed; what a failure leaves is what was there."""

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from training import files
from training.errors import RunError, first_line
from training.files import DiskError, create_folder, remove_temporary_files, write_atomically, write_sealed

FULL = OSError(errno.ENOSPC, "No space left on device")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_stands_there_alone_and_in_the_place_of_what_was_there(tmp_path):
    for data in (b"one", b"another"):
        write_atomically(tmp_path / "a.json", lambda file, data=data: file.write(data))
        assert contents(tmp_path) == {"a.json": data}


def test_the_previous_file_is_kept_and_the_one_before_is_not(tmp_path):
    last, previous = tmp_path / "last", tmp_path / "previous"
    write_atomically(last, lambda file: file.write(b"1"), previous)
    assert contents(tmp_path) == {"last": b"1"}
    for number in (b"2", b"3"):
        write_atomically(last, lambda file, number=number: file.write(number), previous)
    assert contents(tmp_path) == {"last": b"3", "previous": b"2"}


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (FULL, DiskError),
        (RuntimeError("of a GPU"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_write_that_fails_halfway_leaves_the_old_files_and_no_other(tmp_path, error, raised):
    def write(file):
        file.write(b"half of the n")
        raise error

    path, previous = tmp_path / "last.pth", tmp_path / "last.prev.pth"
    path.write_bytes(b"the old one")
    previous.write_bytes(b"the one before")
    with pytest.raises(raised):
        write_atomically(path, write, previous)
    assert contents(tmp_path) == {"last.pth": b"the old one", "last.prev.pth": b"the one before"}


def test_the_bytes_are_on_the_disk_before_the_renames_and_the_folder_after_them(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def fsync_and_note(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("flush folder" if is_folder else f"flush {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def replace_and_note(source, target):
        done.append(f"rename to {Path(target).name}")
        replace(source, target)

    (tmp_path / "last").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync_and_note)
    monkeypatch.setattr(os, "replace", replace_and_note)
    write_atomically(tmp_path / "last", lambda file: file.write(b"12345"), tmp_path / "previous")
    assert done == ["flush 5 bytes", "rename to previous", "rename to last", "flush folder"]


def test_a_file_that_cannot_be_flushed_does_not_take_the_old_ones_place(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "last").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        DiskError, match=r"can't write .*last: .*Input/output error; what was saved before is untouched"
    ):
        write_atomically(tmp_path / "last", lambda file: file.write(b"new"), tmp_path / "previous")
    assert contents(tmp_path) == {"last": b"old"}


def test_a_file_system_that_flushes_no_folders_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomically(tmp_path / "a", lambda file: file.write(b"new"))
    assert contents(tmp_path) == {"a": b"new"}


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_folder_that_is_gone_is_one_line_and_not_made_again(tmp_path, when):
    folder = tmp_path / "run"
    folder.mkdir()

    def write(file):
        shutil.rmtree(folder)

    if when == "before":
        folder.rmdir()
    with pytest.raises(DiskError, match=r"can't write .*last") as caught:
        write_atomically(folder / "last", write)
    assert len(str(caught.value).splitlines()) == 1
    assert not folder.exists()


def test_a_disk_error_is_the_users_to_mend_and_has_its_first_line_alone():
    assert issubclass(DiskError, RunError)
    assert first_line(RuntimeError("unexpected pos 64 vs 0\nC++ stack\nand more")) == "unexpected pos 64 vs 0"
    assert first_line(RuntimeError()) == "RuntimeError"


def test_a_folder_is_made_with_its_parents_and_nothing_in_it(tmp_path):
    for _ in range(2):
        create_folder(tmp_path / "a" / "b")
        assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_made_or_written_to_is_one_line_with_the_flag_that_helps(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiskError, match=r"file/run: .*--output-dir"):
        create_folder(tmp_path / "file" / "run")

    def read_only(**arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    with pytest.raises(DiskError, match=rf"{tmp_path}: Read-only file system; choose another --output-dir"):
        create_folder(tmp_path)


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path):
    def killed(file):
        file.write(b"half of the n")
        file.flush()
        shutil.copytree(tmp_path, copy)

    copy = tmp_path.with_name(f"{tmp_path.name} as it is when killed")
    for name in (".lock", ".hidden", "mine.tmp", "last.pth"):
        (tmp_path / name).write_bytes(b"")
    write_atomically(tmp_path / "last.pth", killed)
    assert len(contents(copy)) == 5
    remove_temporary_files(copy)
    assert contents(copy).keys() == {".lock", ".hidden", "mine.tmp", "last.pth"}


class Unsavable:
    """Something that can't be pickled, as a tensor of a GPU that has failed can't be read."""

    def __reduce__(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_an_error_that_is_not_of_the_disk_stays_what_it_is_and_the_old_file_stays(tmp_path):
    write_sealed(tmp_path / "last.pth", {"epoch": 1})
    before = contents(tmp_path)
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        write_sealed(tmp_path / "last.pth", Unsavable())
    assert not isinstance(caught.value, DiskError)
    assert contents(tmp_path) == before
