"""A damaged, foreign or malicious checkpoint is never used: the run warns and takes the one before, or is refused."""

import functools
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FLIPS
from runs import NEVER, TINY, TRAIN, assert_one_line, assert_same_run, content_of

from evaluation.figures import FIGURES
from training import checkpoint, files

MARKER = "the-code-ran"  # a file beside the run's folder
Damage = Callable[[Path], None]


def truncate(path: Path, percent: int) -> None:
    os.truncate(path, path.stat().st_size * percent // 100)


def flip(path: Path, seed: int) -> None:
    """Flip one bit of the file."""
    content = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def change(path: Path, **values: Any) -> None:
    """Change values in a checkpoint and seal it again."""
    files.write_sealed(path, {**checkpoint.load(path), **values})


class Runs:
    """An object that calls a function when it is unpickled without care."""

    def __init__(self, function: Callable[..., object], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def plant(path: Path, kind: str, sealed: bool) -> None:
    """Write a checkpoint with code in it that makes the marker file if it runs."""
    marker = path.parent.parent / MARKER
    whole = {"epoch": 3, **checkpoint.load(path)}
    content = {
        "os.system": Runs(os.system, f"touch {marker}"),
        "eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "nested": {**whole, "config": {"seed": [Runs(os.system, f"touch {marker}")]}},
        "legacy": {**whole, "config": Runs(os.system, f"touch {marker}")},
    }[kind]
    torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    if sealed:
        data = path.read_bytes()
        path.write_bytes(data + files.SEAL + hashlib.sha256(data).hexdigest().encode())


KINDS = ("os.system", "eval", "nested", "legacy")
RUNS_CODE = {
    f"{kind}, {'sealed' if sealed else 'unsealed'}": functools.partial(plant, kind=kind, sealed=sealed)
    for kind in KINDS
    for sealed in (False, True)
}
OTHER_MODEL = {"pos_embed": torch.zeros(1, 17, 36)}
DAMAGES: list[tuple[str, str, Damage]] = [
    *(("last.pth truncated", f"{n} %", functools.partial(truncate, percent=n)) for n in (0, 1, 50, 99)),
    *(("last.pth with a flipped bit", str(seed), functools.partial(flip, seed=seed)) for seed in range(FLIPS)),
    *(("last.pth that runs code", name, damage) for name, damage in RUNS_CODE.items()),
    *(
        ("last.pth of another version, run or model", name, functools.partial(change, **values))
        for name, values in (("version 1", {"format_version": 1}), ("version 3", {"format_version": 3}))
    ),
]
damages = pytest.mark.parametrize(
    ("row", "damage"), [pytest.param(row, do, id=f"{row}, {x}") for row, x, do in DAMAGES]
)


@pytest.mark.parametrize("plant_it", RUNS_CODE.values(), ids=RUNS_CODE)
def test_the_planted_code_would_run(finished, plant_it):
    plant_it(finished / "last.pth")
    torch.load(finished / "last.pth", weights_only=False)
    assert (finished.parent / MARKER).exists()


@damages
def test_with_a_damaged_last_the_run_goes_on_from_the_one_before(launcher, unbroken, finished, trying, row, damage):
    with trying(row):
        damage(finished / "last.pth")
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", finished, "--resume")
        assert result.code == 0, result.err
        [warning] = result.err.splitlines()
        assert warning.startswith(f"WARNING: {finished / 'last.pth'} is ")
        assert warning.endswith("going on from last.prev.pth, epoch 2")
        assert not (finished.parent / MARKER).exists()
        assert_same_run(finished, unbroken)


@damages
def test_with_both_damaged_nothing_is_begun_or_changed(launcher, finished, trying, row, damage):
    with trying("both checkpoints damaged"):
        for name in ("last.pth", "last.prev.pth"):
            damage(finished / name)
        before = content_of(finished)
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", finished, "--resume")
        assert (result.code, result.out) == (1, "")
        assert_one_line(result.err, "last.pth", "last.prev.pth")
        assert not (finished.parent / MARKER).exists()
        assert content_of(finished) == before


def test_the_checkpoint_of_a_run_with_other_settings_is_refused(launcher, finished, trying):
    with trying("last.pth of another version, run or model"):
        config = checkpoint.load(finished / "last.pth")["config"]
        change(finished / "last.pth", config={**config, "depth": 2})
        before = content_of(finished)
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", finished, "--resume")
        assert (result.code, result.out) == (2, "")
        assert_one_line(result.err, "depth was 2, is 1")
        assert content_of(finished) == before


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("model_name", "ResNet18", 2), ("model", OTHER_MODEL, 1), ("optimizer", {}, 1), ("history", {}, 1),
        ("epoch_sums", {"a": 1}, 1), ("epoch", 7, 1),
    ],
)  # fmt: skip
def test_a_sealed_checkpoint_that_does_not_fit_is_refused(launcher, finished, trying, name, value, code):
    with trying("last.pth of another version, run or model"):
        change(finished / "last.pth", **{name: value})
        before = content_of(finished)
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", finished, "--resume")
        assert (result.code, result.out) == (code, "")
        assert_one_line(result.err)
        assert content_of(finished) == before


@pytest.fixture(params=[None, b"", b'{"epoch": [1, 2'], ids=["missing", "empty", "garbage"])
def without_history(request, finished) -> Path:
    """A finished run whose history is missing or unreadable."""
    path = finished / "training_history.json"
    path.unlink()
    if request.param is not None:
        path.write_bytes(request.param)
    return finished


def test_a_damaged_history_is_rebuilt(launcher, unbroken, without_history, trying):
    with trying("training_history.json damaged"):
        result = launcher.run(TRAIN, *TINY, NEVER, "--output-dir", without_history, "--resume")
        assert (result.code, result.err) == (0, "")
        assert_same_run(without_history, unbroken)


def test_the_evaluator_does_without_the_history(launcher, without_history, trying):
    others = [name for name in FIGURES if name != "training_curves"]
    with trying("training_history.json damaged"):
        result = launcher.run("evaluate_vit.py", "--device=cpu", "--checkpoint", without_history, "--skip", *others)
        assert (result.code, result.err) == (0, "")
        evaluation = json.loads((without_history / "evaluation" / "evaluation.json").read_text())
        best = checkpoint.load(without_history / "best_model.pth")
        assert evaluation["accuracy"] == best["history"]["test_acc"][-1]


@damages
def test_the_evaluator_refuses_a_damaged_checkpoint(launcher, finished, trying, row, damage):
    with trying("damaged checkpoint for evaluate_vit.py"):
        shutil.copy(finished / "last.pth", finished / "best_model.pth")
        damage(finished / "best_model.pth")
        before = content_of(finished)
        result = launcher.run("evaluate_vit.py", "--device=cpu", "--checkpoint", finished)
        assert (result.code, result.out) == (1, "")
        assert_one_line(result.err, "best_model.pth")
        assert not (finished.parent / MARKER).exists()
        assert content_of(finished) == before
