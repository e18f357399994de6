"""A checkpoint is whole or not there; what is damaged or foreign is refused in one line, and nothing in it runs."""

import copy
import hashlib
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch

from tests.steps import Steps
from training import checkpoint, files, history
from training.data.loader import ImageLoader
from training.engine import train_one_epoch
from training.errors import RunError
from training.files import DiskError
from training.optim import create_optimizer, create_scheduler
from vit import VisionTransformer

CONTENT = {
    "epoch": 3,
    "model": {"weight": torch.arange(5000.0), "half": torch.tensor([1.5], dtype=torch.bfloat16)},
    "history": {"lr": [0.1, 1e-300]},
    "class_names": ["cat", "<dog>"],
    "nothing": None,
    "epoch_sums": {"step": 3},
    "machine": {"threads": 2},
}


class RunsCode:
    """Unpickled carelessly, this makes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


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


def test_a_disk_that_takes_no_more_is_one_line_and_the_old_checkpoint_stays(tmp_path):
    path = tmp_path / "last.pth"
    checkpoint.save(path, {"epoch": 1, "model": {}})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # bytes a file may have; CONTENT has 20,000
    try:
        with pytest.raises(DiskError, match=r"can't write .*last\.pth"):
            checkpoint.save(path, CONTENT, tmp_path / "last.prev.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["last.pth"]


def sealed_by_hand(data: bytes) -> bytes:
    """The format as the module's docstring has it."""
    return data + b"\nsha256 " + hashlib.sha256(data).hexdigest().encode()


def test_the_seal_is_a_line_with_the_digest_of_all_before_it(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONTENT)
    data = path.read_bytes()
    assert data == sealed_by_hand(data[:-72])
    assert len(data) > 20_000


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_checkpoint_that_lacks_an_end_or_has_another_bit_anywhere_is_refused(tmp_path, damage):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"model": {"weight": torch.ones(2)}})
    data = path.read_bytes()
    assert checkpoint.load(path)["model"]["weight"].tolist() == [1, 1]
    for place, byte in enumerate(data):
        flipped = data[:place] + bytes([byte ^ 1 << place % 8]) + data[place + 1 :]
        path.write_bytes(data[:place] if damage == "truncated" else flipped)
        assert_refused(path)


@pytest.mark.parametrize("more", [b"\0", b"\n", bytes(100), b"\nsha256 " + 64 * b"0"])
def test_a_checkpoint_with_something_behind_it_is_refused(tmp_path, more):
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONTENT)
    path.write_bytes(path.read_bytes() + more)
    assert_refused(path)


def test_weights_that_are_not_finite_are_not_saved_and_the_old_file_stays(tmp_path):
    path, previous = tmp_path / "last.pth", tmp_path / "last.prev.pth"
    checkpoint.save(path, CONTENT)
    before = path.read_bytes()
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(RunError, match="half is not finite") as caught:
            checkpoint.save(path, {"model": CONTENT["model"] | {"half": torch.tensor([1.0, value])}}, previous)
        assert not isinstance(caught.value, DiskError)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pth"]


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b'{"epoch": [1]}', b"a note, not a checkpoint"])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    assert_refused(path)


@pytest.mark.parametrize(
    "content", [{"epoch": 1}, {"format_version": 1}, {"format_version": "2"}, [1, 2], torch.ones(2)]
)
def test_another_format_version_or_none_is_refused(tmp_path, content):
    path = tmp_path / "a.pth"
    files.write_sealed(path, content)
    files.read_sealed(path)  # the file is whole
    assert_refused(path)


def test_a_checkpoint_without_its_seal_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONTENT)
    path.write_bytes(path.read_bytes()[:-72])
    torch.load(path, weights_only=True)  # for torch, it is whole
    assert_refused(path)


def test_a_missing_checkpoint_and_a_folder_are_refused(tmp_path):
    assert_refused(tmp_path / "none.pth")
    assert_refused(tmp_path)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("dump", [lambda content, file: pickle.dump(content, file, protocol=2), torch.save])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path, dump, sealed):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    with open(path, "wb") as file:
        dump({"format_version": checkpoint.FORMAT_VERSION, "epoch": 1, "model": RunsCode(trace)}, file)
    if sealed:
        path.write_bytes(sealed_by_hand(path.read_bytes()))
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
    assert str(last) in warnings[0]
    assert "last.prev.pth, epoch 1" in warnings[0]


def test_resuming_where_nothing_can_be_read_is_one_line(tmp_path):
    (tmp_path / "last.pth").write_bytes(b"")
    with pytest.raises(RunError, match="nothing to resume") as caught:
        checkpoint.load_last(tmp_path, pytest.fail)
    assert len(str(caught.value).splitlines()) == 1


def test_a_memory_that_is_full_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    def read(path: Path):
        raise MemoryError

    checkpoint.save(tmp_path / "last.pth", CONTENT)
    monkeypatch.setattr(checkpoint, "read_sealed", read)
    with pytest.raises(MemoryError):
        checkpoint.load_last(tmp_path, pytest.fail)


def test_from_weights_alone_no_run_can_go_on(tmp_path):
    checkpoint.save(tmp_path / "last.pth", {"epoch": 1, "model": CONTENT["model"]})
    with pytest.raises(RunError, match=r"nothing to resume in .*last\.pth holds only weights.*no .*last\.prev\.pth"):
        checkpoint.load_last(tmp_path, pytest.fail)


def test_the_random_state_comes_back_through_a_file(tmp_path):
    device = torch.device("cpu")
    torch.manual_seed(1)
    torch.randn(3)  # in the middle of a stream
    checkpoint.save(tmp_path / "a.pth", {"model": {}, "random_state": checkpoint.get_random_state(device)})
    expected = torch.randn(100), torch.randperm(50)
    torch.manual_seed(2)
    checkpoint.set_random_state(checkpoint.load(tmp_path / "a.pth")["random_state"], device)
    assert torch.equal(torch.randn(100), expected[0])
    assert torch.equal(torch.randperm(50), expected[1])


def test_in_a_folder_without_a_run_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        checkpoint.load_last(tmp_path, pytest.fail)


STEPS_PER_EPOCH = 5


def new_state(seed: int, optimizer: str) -> checkpoint.TrainingState:
    torch.manual_seed(seed)
    model = VisionTransformer(img_size=8, embed_dim=24, depth=1, dropout=0.3)
    return checkpoint.TrainingState(
        model, create_optimizer(model, optimizer, 0.01, 0.05), torch.device("cpu"), history.new_history("test")
    )


def train(state: checkpoint.TrainingState, num_epochs: int, after_sync) -> None:
    """Epochs on random images, from where the state is; the schedule is that of two epochs."""
    images = torch.randint(0, 256, (18, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.5] * 3, [0.25] * 3
    loader = ImageLoader(images, torch.arange(18) % 10, mean, std, batch_size=4, shuffle_seed=0, split="train")
    assert len(loader) == STEPS_PER_EPOCH
    steps_done = state.epoch * STEPS_PER_EPOCH + state.sums.step
    scheduler = create_scheduler(state.optimizer, 2, 2 * STEPS_PER_EPOCH, steps_done)
    for epoch in range(state.epoch, num_epochs):
        loader.set_epoch(epoch, state.sums.step)
        steps = Steps(state.sums, after_sync)
        train_one_epoch(state.model, loader, state.optimizer, scheduler, torch.float32, steps)
        state.finish_epoch(
            state.sums.metrics() | {"epoch": epoch, "epoch_time": 1.0, "test_loss": 1.0, "test_acc": 1.0}
        )


def bits_of(state: checkpoint.TrainingState) -> dict:
    saved = copy.deepcopy(state.state_dict())
    for figures in (saved["epoch_sums"], saved["history"]):
        for name in {"seconds", "images_per_second"} & figures.keys():
            del figures[name]
    return saved


class Stop(Exception):
    """The run is stopped here."""


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_state_saved_between_any_two_steps_goes_on_to_the_same_bits(tmp_path, optimizer):
    path, unstopped = tmp_path / "last.pth", new_state(1, optimizer)
    states = [bits_of(unstopped)]
    train(unstopped, 2, lambda: states.append(bits_of(unstopped)))
    states.append(bits_of(unstopped))
    assert len(states) == 12
    for stop_at in range(1, 11):
        stopped = new_state(1, optimizer)

        def stop(stopped=stopped, stop_at=stop_at):
            if stopped.epoch * STEPS_PER_EPOCH + stopped.sums.step == stop_at:
                checkpoint.save(path, stopped.state_dict())
                raise Stop

        with pytest.raises(Stop):
            train(stopped, 2, stop)
        resumed = new_state(2, optimizer)  # of other weights and another random state
        resumed.load_state_dict(checkpoint.load(path))
        torch.testing.assert_close(bits_of(resumed), states[stop_at], rtol=0, atol=0)
        assert (resumed.epoch, resumed.sums.step) == ((stop_at - 1) // 5, (stop_at - 1) % 5 + 1)
        train(resumed, 2, lambda: None)
        torch.testing.assert_close(bits_of(resumed), states[-1], rtol=0, atol=0)


def test_what_a_state_holds_is_named_in_the_file_and_an_epochs_end_begins_the_next():
    state = new_state(1, "adamw")
    train(state, 1, lambda: None)
    saved = state.state_dict()
    assert saved.keys() == {
        "epoch", "epoch_sums", "history", "startup_seconds", "model", "optimizer", "random_states",
    }  # fmt: skip
    assert saved["epoch"] == state.epoch == 1
    assert set(saved["epoch_sums"].values()) == {0}
    assert saved["history"]["lr"] == pytest.approx([0.01 * 0.8535534])  # a quarter down the cosine
