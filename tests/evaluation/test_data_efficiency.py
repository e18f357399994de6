"""Runs on shares of the images make lines, at equal epochs and at equal images seen; nothing else joins one."""

from pathlib import Path
from typing import Any

import pytest

from config_vit_cifar10 import ViTConfig
from evaluation.comparison import group
from evaluation.data_efficiency import DataLine, data_lines
from evaluation.run_record import read_run
from tests.run_folders import write_run


def write(folder: Path, num_images: int, epochs: int, accuracy: float, **settings: Any) -> str:
    """A run with the warmup that its number of epochs makes, and with --max-train-images unless it has all 1,000."""
    return write_run(
        folder, [1.0] * (epochs - 1) + [accuracy], data={"num_train_images": num_images},
        max_train_images=num_images if num_images < 1000 else 0,
        warmup_epochs=ViTConfig(num_epochs=epochs).to_dict()["warmup_epochs"], **settings,
    )  # fmt: skip


def lines_of(*folders: str) -> list[DataLine]:
    return data_lines(group([read_run(Path(folder)) for folder in folders]))


def test_equal_epochs_and_equal_images_seen_are_two_lines_to_the_same_run(tmp_path):
    full = [write(tmp_path / f"full/seed-{seed}", 1000, 2, 70.0 + seed, seed=seed) for seed in (1, 3)]
    tenth = [write(tmp_path / "tenth", 100, 2, 20.0), write(tmp_path / "tenth-long", 100, 20, 40.0)]
    third = write(tmp_path / "third-long", 333, 6, 55.0)  # 1,998 images seen: a third, rounded
    by_epochs, by_images = lines_of(*tenth, third, *full)
    assert (by_epochs.name, by_epochs.equal) == ("full", "epochs")
    assert by_epochs.points == [(100, 20, 0), (1000, 72, pytest.approx(2**0.5))]
    assert (by_images.name, by_images.equal) == ("full", "images seen")
    assert by_images.points == [(100, 40, 0), (333, 55, 0), (1000, 72, pytest.approx(2**0.5))]


def test_other_models_settings_and_unfinished_runs_have_lines_of_their_own_or_none(tmp_path):
    lines = lines_of(
        write(tmp_path / "vit", 1000, 2, 70.0),
        write(tmp_path / "wider", 100, 2, 40.0, embed_dim=384),
        write(tmp_path / "unfinished", 100, 2, 40.0, num_epochs=3),
        write(tmp_path / "resnet", 1000, 2, 80.0, model_name="ResNet18"),
        write(tmp_path / "resnet-half", 500, 2, 60.0, model_name="ResNet18"),
    )
    assert lines == [DataLine("resnet", "epochs", [(500, 60, 0), (1000, 80, 0)])]


def test_a_run_without_warmup_is_in_no_line_of_runs_with_one(tmp_path):
    counts = {1000: 0.2, 500: 0.0}
    folders = [
        write_run(tmp_path / f"{n}", [60.0], data={"num_train_images": n}, max_train_images=n, warmup_epochs=warmup)
        for n, warmup in counts.items()
    ]
    assert lines_of(*folders) == []


def test_runs_on_the_same_images_make_no_line_and_a_repetition_has_the_place_of_the_first(tmp_path):
    one, repeated = write(tmp_path / "one", 1000, 2, 50.0), write(tmp_path / "repeated", 1000, 2, 52.0)
    assert lines_of(one, repeated) == []
    assert lines_of(one, repeated, write(tmp_path / "half", 500, 2, 30.0)) == [
        DataLine("one", "epochs", [(500, 30, 0), (1000, 50, 0)])
    ]


def test_held_out_runs_count_with_their_test_accuracy_alone(tmp_path):
    folders = [
        write_run(tmp_path / f"{count}", [30.0], "val", data={"num_train_images": count}, max_train_images=count)
        for count in (100, 200, 300)
    ]
    for folder, accuracy in zip(folders[:2], (25.0, 35.0), strict=True):
        Path(folder, "test_result.json").write_text(f'{{"test_acc": {accuracy}}}')
    [line] = lines_of(*folders)
    assert line.points == [(100, 25, 0), (200, 35, 0)]
