"""A checkpoint is whole or not there; what is damaged or foreign is refused in one line, and nothing in it runs."""

import errno
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.errors import RunError

CONTENT = {
    "epoch": 3,
    "model": {"weight": torch.arange(5000.0), "half": torch.tensor([1.5], dtype=torch.bfloat16)},
    "history": {"lr": [0.1, 1e-300]},
    "class_names": ["cat", "<dog>"],
    "nothing": None,
}


class RunsCode:
    """Unpickled carelessly, this makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


def flip_a_bit(data: bytes) -> bytes:
    middle = len(data) // 2  # among the weights
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


def assert_refused(path: Path) -> None:
    with pytest.raises(RunError, match=path.name) as caught:
        checkpoint.load(path)
    assert len(str(caught.value).splitlines()) == 1


def assert_same(actual: dict, expected: dict) -> None:
    torch.testing.assert_close(actual["model"], expected["model"], rtol=0, atol=0)
    plain = expected.keys() - {"model"}
    assert {key: actual[key] for key in plain} == {key: expected[key] for key in plain}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "a.pth", CONTENT)
    assert_same(checkpoint.load(tmp_path / "a.pth"), CONTENT)
    assert os.listdir(tmp_path) == ["a.pth"]


def test_plain_torch_loads_a_checkpoint_without_trusting_it(tmp_path):
    checkpoint.save(tmp_path / "a.pth", CONTENT)
    assert_same(torch.load(tmp_path / "a.pth", weights_only=True), CONTENT)


def test_the_previous_file_is_kept_and_the_one_before_is_not(tmp_path):
    last, previous = tmp_path / "last.pth", tmp_path / "last.prev.pth"
    for epoch in (1, 2, 3):
        checkpoint.save(last, {"epoch": epoch}, previous)
    assert [checkpoint.load(path)["epoch"] for path in (last, previous)] == [3, 2]
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_write_that_fails_halfway_leaves_the_old_file_and_no_other(tmp_path, error, raised):
    def write(file):
        file.write(b"half of the n")
        raise error

    path, previous = tmp_path / "last.pth", tmp_path / "last.prev.pth"
    path.write_bytes(b"the old one")
    with pytest.raises(raised):
        checkpoint.write_atomically(path, write, previous)
    assert path.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_disk_that_takes_no_more_is_one_line_and_the_old_checkpoint_stays(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"epoch": 1})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # bytes a file may have; CONTENT has 20,000
    try:
        with pytest.raises(RunError, match=r"can't write .*last\.pth"):
            checkpoint.save(path, CONTENT, tmp_path / "last.prev.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONTENT)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert_refused(path)


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONTENT)
    path.write_bytes(flip_a_bit(path.read_bytes()))
    assert_refused(path)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b'{"epoch": [1]}', b"a note, not a checkpoint"])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    assert_refused(path)


@pytest.mark.parametrize("content", [{"epoch": 1}, {"format_version": 0}, {"format_version": 2}, [1, 2], torch.ones(2)])
def test_another_format_version_or_none_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth")


def test_a_missing_checkpoint_and_a_folder_are_refused(tmp_path):
    assert_refused(tmp_path / "none.pth")
    assert_refused(tmp_path)


@pytest.mark.parametrize("dump", [lambda content, file: pickle.dump(content, file, protocol=2), torch.save])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path, dump):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    with open(path, "wb") as file:
        dump({"format_version": checkpoint.FORMAT_VERSION, "epoch": 1, "model": RunsCode(trace)}, file)
    assert_refused(path)
    assert not trace.exists()
    if dump is torch.save:  # the trap itself works
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("share", [0, 0.5, None])
def test_resuming_falls_back_to_the_previous_checkpoint_with_a_warning(tmp_path, share):
    last = tmp_path / "last.pth"
    for epoch in (1, 2):
        checkpoint.save(last, CONTENT | {"epoch": epoch}, tmp_path / "last.prev.pth")
    warnings = []

    def epoch_to_resume() -> int:
        saved = checkpoint.load_last(tmp_path, warnings.append)
        assert saved is not None
        return saved["epoch"]

    assert epoch_to_resume() == 2
    assert warnings == []
    if share is None:
        last.unlink()
    else:
        os.truncate(last, int(share * last.stat().st_size))
    assert epoch_to_resume() == 1
    assert len(warnings) == 1
    assert warnings[0].startswith("WARNING: ")
    assert str(last) in warnings[0]
    assert "last.prev.pth, epoch 1" in warnings[0]


def test_resuming_where_nothing_can_be_read_is_one_line(tmp_path):
    (tmp_path / "last.pth").write_bytes(b"")
    with pytest.raises(RunError, match="nothing to resume") as caught:
        checkpoint.load_last(tmp_path, pytest.fail)
    assert len(str(caught.value).splitlines()) == 1


def test_the_random_state_comes_back_through_a_file(tmp_path):
    device = torch.device("cpu")
    torch.manual_seed(1)
    torch.randn(3)  # in the middle of a stream
    checkpoint.save(tmp_path / "a.pth", {"random_state": checkpoint.get_random_state(device)})
    expected = torch.randn(100), torch.randperm(50)
    torch.manual_seed(2)
    checkpoint.set_random_state(checkpoint.load(tmp_path / "a.pth")["random_state"], device)
    assert torch.equal(torch.randn(100), expected[0])
    assert torch.equal(torch.randperm(50), expected[1])
