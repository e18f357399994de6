"""Rows over seeds equal numpy's, only what differs is a column, what can't be compared is refused with the reason."""

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config_vit_cifar10 import ViTConfig
from evaluation import comparison
from evaluation.comparable import require_comparable
from evaluation.comparison import group, to_csv, to_markdown, to_plain, to_table
from evaluation.run_record import RunRecord, read_run
from tests.run_folders import write_evaluation, write_run
from training.errors import RunError, UsageError
from training.provenance import FREE_ON_RESUME


def read(*folders: str) -> list[RunRecord]:
    return [read_run(Path(folder)) for folder in folders]


def test_a_record_says_what_its_files_say(tmp_path):
    run = read_run(Path(write_run(tmp_path / "run", [50.0, 70.5, 60.25], seed=7)))
    assert (run.name, run.model_name, run.seed) == (str(tmp_path / "run"), "VisionTransformer", 7)
    assert (run.num_parameters, run.flops, run.images_seen) == (1234, 2_050_000_000, 1500)
    assert (run.epochs_done, run.finished, run.seconds, run.images_per_second) == (3, True, 5400, 100)
    assert (run.split, max(run.accuracies), run.accuracies[-1], run.test_accuracy) == ("test", 70.5, 60.25, 70.5)


def test_the_speed_is_all_images_over_all_seconds(tmp_path):
    path = Path(write_run(tmp_path / "run", [1.0, 2.0])) / "training_history.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images_per_second": [50.0, 200.0]}))
    assert read_run(tmp_path / "run").images_per_second == pytest.approx(1000 / (500 / 50 + 500 / 200))


@pytest.mark.parametrize(
    ("split", "done", "files", "expected"),
    [
        ("test", True, (), 70.0),
        ("val", True, (), None),
        ("val", True, ("test_result",), 66.0),
        ("val", False, ("test_result",), None),  # of the run before it was extended
        ("val", True, ("test_result of epoch 1",), None),  # as after the last of the added epochs, before the test
        ("val", True, ("test_result of epoch 2",), 66.0),
        ("val", True, ("evaluation",), 75.0),
        ("val", False, ("evaluation",), 75.0),
        ("val", True, ("test_result", "evaluation"), 66.0),
        ("val", True, ("evaluation of epoch 1",), None),
        ("val", True, ("evaluation on other images",), None),
        ("val", True, ("evaluation of another model",), None),
    ],
)
def test_the_test_accuracy_is_that_of_the_best_epoch_where_it_is_known(tmp_path, split, done, files, expected):
    folder = write_run(tmp_path / "run", [60.0, 70.0], split, num_epochs=2 if done else 3)
    for name in files:
        if name.startswith("test_result"):
            epoch = {"epoch": int(name[-1])} if name[-1].isdigit() else {}  # old runs have none
            content = {"test_loss": 1.0, "test_acc": 66.0} | epoch
            (tmp_path / "run" / "test_result.json").write_text(json.dumps(content))
        else:
            changes = {"evaluation of epoch 1": {"epoch": 1}, "evaluation on other images": {"chosen_on": None}}
            changes |= {"evaluation of another model": {"model_name": "ResNet18"}}
            write_evaluation(folder, [0, 0, 1, 1], [0, 0, 1, 0], **changes.get(name, {}))
    assert read_run(Path(folder)).test_accuracy == expected


def test_a_damaged_evaluation_is_none(tmp_path):
    folder = write_run(tmp_path / "run", [60.0], "val")
    (tmp_path / "run" / "evaluation.json").write_text("{")
    assert read_run(Path(folder)).test_accuracy is None


def test_a_run_of_an_older_version_has_the_defaults_of_younger_settings(tmp_path):
    path = Path(write_run(tmp_path / "old", [60.0])) / "config.json"
    content = json.loads(path.read_text())
    for name in ("qk_norm", "optimizer"):
        del content["config"][name]
    del content["num_parameters"], content["flops"], content["data"]["num_train_images"], content["extended_from"]
    path.write_text(json.dumps(content))
    [row] = to_plain(group(read(str(tmp_path / "old"))))
    assert [row[name] for name in ("num_parameters", "flops", "images_seen")] == [None] * 3
    assert to_markdown(group(read(str(tmp_path / "old")))).endswith("| - | 30 min 00 s | 100 | - | - |\n")
    new = write_run(tmp_path / "new", [65.0], seed=1)
    assert len(group(read(str(tmp_path / "old"), new))) == 1
    grown = write_run(tmp_path / "grown", [65.0], seed=2, data={"num_train_images": 501})
    assert [len(row.runs) for row in group(read(new, grown))] == [1, 1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training_history.json", ""),
        ("training_history.json", "[]"),
        ("training_history.json", '{"epoch": [1]}'),
        ("config.json", ""),
        ("config.json", "[]"),
        ("config.json", '{"model_name": "x", "config": []}'),
        ("config.json", '{"model_name": "x", "config": {"num_epochs": 1, "seed": 1}, "data": {"class_names": []}}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = write_run(tmp_path / "run", [80.0])
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(RunError, match=name):
        read_run(Path(folder))


def test_a_history_of_negative_numbers_is_damaged(tmp_path):
    path = Path(write_run(tmp_path / "run", [80.0])) / "training_history.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"test_acc": [-1]}))
    with pytest.raises(RunError, match=r"training_history\.json is damaged: a number is negative"):
        read_run(tmp_path / "run")


def test_a_run_without_a_finished_epoch_and_no_run_are_told_apart(tmp_path):
    with pytest.raises(RunError, match="holds a run without a finished epoch"):
        read_run(Path(write_run(tmp_path / "new", [])))
    with pytest.raises(RunError, match="holds no run"):
        read_run(tmp_path / "missing")


def test_runs_that_differ_only_in_the_seed_are_a_mean_with_the_sample_standard_deviation(tmp_path):
    best, last = [70.0, 73.0, 71.5], [69.0, 73.0, 70.0]
    folders = [
        write_run(tmp_path / f"seed-{seed}", [best[seed], last[seed]], seed=seed, data_dir=f"data{seed}")
        for seed in range(3)
    ]
    [row] = to_plain(group(read(*reversed(folders))))
    assert row["seeds"] == [0, 1, 2]
    assert row["runs"] == folders
    for name, values in (("best_accuracy", best), ("last_accuracy", last), ("test_accuracy", best)):
        assert row[name] == pytest.approx(np.mean(values))
        assert row[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert f"{np.mean(best):.2f} ± {np.std(best, ddof=1):.2f}" in to_markdown(group(read(*folders)))


@pytest.mark.parametrize("name", [name for name in ViTConfig().to_dict() if name not in ("dataset", "num_epochs")])
def test_any_setting_but_those_that_change_no_result_makes_another_row(tmp_path, name):
    value = ViTConfig().to_dict()[name]
    other = value + 1 if isinstance(value, int | float) and not isinstance(value, bool) else "another"
    rows = group(
        read(write_run(tmp_path / "a", [70.0], seed=1), write_run(tmp_path / "b", [70.0], **{"seed": 2, name: other}))
    )
    if name in (*FREE_ON_RESUME, "seed"):
        assert len(rows) == 1
    else:
        assert len(rows) == 2
        assert comparison.differing_settings(rows) == [name]
        assert to_table(comparison.to_cells(rows)).count(name) == 1


@pytest.mark.parametrize(
    "change", [{"model_name": "ResNet18"}, {"about": {"precision": "bfloat16"}}, {"about": {"extended_from": [50]}}]
)
def test_another_model_arithmetic_or_schedule_makes_another_row(tmp_path, change):
    folders = write_run(tmp_path / "a", [70.0], seed=1), write_run(tmp_path / "b", [70.0], seed=2, **change)
    assert len(group(read(*folders))) == 2


def test_an_unfinished_run_is_marked_and_not_averaged(tmp_path):
    folders = [write_run(tmp_path / f"seed{seed}", [70.0] * 3, seed=seed) for seed in (1, 2)]
    folders += [write_run(tmp_path / f"seed{seed}", [10.0], seed=seed, num_epochs=3) for seed in (3, 4)]
    rows = group(read(*folders))
    assert [[run.seed for run in row.runs] for row in rows] == [[1, 2], [3], [4]]
    assert to_markdown(rows).count("| 1 of 3, unfinished |") == 2
    assert [row["finished"] for row in to_plain(rows)] == [True, False, False]


def test_a_repetition_with_the_same_seed_is_not_a_second_seed(tmp_path):
    rows = group(read(*(write_run(tmp_path / name, [70.0], seed=1) for name in "abc")))
    assert [row.name for row in rows] == ["a", "b", "c"]


def test_a_mean_over_runs_of_which_one_is_not_known_is_not_known(tmp_path):
    folders = [write_run(tmp_path / f"seed{seed}", [70.0], "val", seed=seed) for seed in (1, 2)]
    (tmp_path / "seed1" / "test_result.json").write_text('{"test_loss": 1.0, "test_acc": 66.0}')
    [row] = to_plain(group(read(*folders)))
    assert (row["test_accuracy"], row["test_accuracy_std"]) == (None, None)


def test_a_setting_that_only_vits_have_is_a_column_where_vits_differ(tmp_path):
    vit, resnet = write_run(tmp_path / "vit", [70.0]), write_run(tmp_path / "resnet", [80.0], model_name="ResNet18")
    assert comparison.differing_settings(group(read(vit, resnet))) == []
    patch8 = write_run(tmp_path / "patch8", [60.0], patch_size=8)
    rows = group(read(vit, resnet, patch8))
    assert [row["patch_size"] for row in to_plain(rows)] == [4, None, 8]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["a/patch8/seed-1", "a/patch8/seed-12", "!a/b"], ["patch8", "b"]),
        (["a/1", "a/12"], ["a"]),
        (["a/patch8-seed1", "a/patch8-seed2"], ["patch8"]),
        (["a/patch8", "a/patch8-seed2"], ["patch8"]),
        (["a/one", "a/two"], ["a"]),
        (["a/one", "a/two", "a/three"], ["a"]),
        (["a/vit/1", "a/vit/2", "!a/vit"], ["vit/1 and 1 more", "vit"]),
        (["a/x/1", "a/x/2", "!a/x/3"], ["1 and 1 more", "3"]),
        (["a/x/1", "a/x/2", "!a/x/3", "!b"], ["a/x", "a/x/3", "b"]),
        (["!a/b"], ["b"]),
        (["a/patch8/seed-1", "!a/b/seed-1"], ["patch8", "b"]),
        (["a/patch8/seed-1"], ["patch8"]),
        (["!a/b/seed-1", "!a/b/seed-2"], ["seed-1", "seed-2"]),
        (["a/b/seed-1", "!a/b/seed-2", "!a/c/seed-1"], ["b/seed-1", "b/seed-2", "c"]),
        (["a/b/seed-1", "a/b/seed-2", "!a/b/seed-3", "!a/c/seed-1"], ["b/seed-1 and 1 more", "b/seed-3", "c"]),
        (["a/b-seed1", "!a/b_seed2"], ["b-seed1", "b_seed2"]),
        (["!a/run", "!b/run"], ["a/run", "b/run"]),
        (["a/march", "a/may", "!a/b"], ["march and 1 more", "b"]),
        (["vit-tiny", "vit-tinyb", "!c"], ["vit-tiny and 1 more", "c"]),
        (["run-1", "run-2", "!c"], ["run", "c"]),
    ],
)
def test_a_row_has_the_name_that_its_folders_share(tmp_path, monkeypatch, folders, names):
    monkeypatch.chdir(tmp_path)
    for i, folder in enumerate(folders):
        write_run(tmp_path / folder.strip("!"), [70.0], seed=i, depth=20 + i if folder[0] == "!" else 12)
    relative = [folder.strip("!") for folder in folders]
    for paths in (relative, [str(tmp_path / folder) for folder in relative]):
        assert [row.name for row in group(read(*paths))] == names


def test_little_arithmetic_is_not_none(tmp_path):
    [row] = comparison.to_cells(group(read(write_run(tmp_path / "a", [70.0], about={"flops": 1_234_000}))))
    assert row["GFLOP/image"] == "0.00123"


def test_the_same_rows_as_markdown_csv_and_json_wherever_the_folders_are(tmp_path):
    for place in ("here", "there"):
        write_run(tmp_path / place / "a|b", [70.0, 71.0], seed=1)
        write_run(tmp_path / place / "c", [60.0, 62.5], seed=1, patch_size=8, learning_rate=1e-5, auto_augment=False)
    rows, others = (
        group(read(str(tmp_path / place / "a|b"), str(tmp_path / place / "c"))) for place in ("here", "there")
    )
    assert to_markdown(rows) == to_markdown(others)
    heading, rule, *lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in to_markdown(rows).splitlines()]
    assert {len(line) for line in (heading, rule, *lines)} == {len(heading)}
    assert lines[0][0].strip() == r"a\|b"
    cells = dict(zip((text.strip() for text in heading), (text.strip() for text in lines[1]), strict=True))
    assert cells == {
        "run": "c", "model": "VisionTransformer", "seeds": "1 (1)", "epochs": "2", "chosen on": "test",
        "best (%)": "62.50", "last (%)": "62.50", "test (%)": "62.50", "learning_rate": "1e-05", "patch_size": "8",
        "auto_augment": "no", "images seen": "1,000", "time": "1 h 00 min", "images/s": "100", "parameters": "1,234",
        "GFLOP/image": "2.05",
    }  # fmt: skip
    plain = to_plain(rows)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    for line, row in zip(csv.DictReader(io.StringIO(to_csv(rows))), plain, strict=True):
        assert line.keys() == row.keys()
        assert float(line["best_accuracy"]) == row["best_accuracy"]
        assert line["best_accuracy_std"] == ""
        assert json.loads(line["runs"]) == row["runs"]


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, True),
        ({"threads": 1}, False),
        ({"cpu": "B"}, False),
        ({"compile": True}, False),
        ({"machines_before": [{"threads": 1}]}, False),
    ],
)
def test_seeds_of_several_machines_have_no_mean_time(tmp_path, change, known):
    about = {"device": "cpu", "cpu": "A", "threads": 2, "world_size": 1, "machines_before": []}
    folders = [
        write_run(tmp_path / f"seed-{seed}", [70.0], seed=seed, about=about | (change if seed else {}))
        for seed in (0, 1)
    ]
    [row] = comparison.to_plain(group(read(*folders)))
    assert (row["seconds"], row["images_per_second"]) == ((1800, 100) if known else (None, None))
    [cells] = comparison.to_cells(group(read(*folders)))
    assert cells["time"] == ("30 min 00 s" if known else "-")


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_table_fits_a_terminal_and_leaves_nothing_out(tmp_path, count):
    folders = [
        write_run(tmp_path / f"a-usual-name-{i}", [70.0], seed=i, patch_size=i + 1, embed_dim=i + 1, warmup_epochs=i)
        for i in range(count)
    ]
    rows = group(read(*folders))
    table = to_table(comparison.to_cells(rows))
    assert max(map(len, table.splitlines())) <= 120
    for name, text in comparison.to_cells(rows)[-1].items():
        assert name in table
        assert text in table
    blocks = table.split("\n\n")
    assert sum("images seen" in block and "GFLOP/image" in block for block in blocks) == 1  # the costs stay together
    assert all(len(block.splitlines()) == 2 + count for block in blocks)
    assert len({len(line) for line in blocks[0].splitlines()}) == 1


BASE: dict[str, Any] = {"dataset": "image-folder"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "digits"}, "was trained on digits, the other was trained on image-folder"),
        ({"data": {"class_names": ["cat", "cow"]}}, "has the classes cat, cow, the other has the classes cat, dog"),
        ({"split": "val"}, "chose its best epoch on the val images, the other .* on the test images"),
        ({"data": {"mean": [0.5, 0.51, 0.5]}}, "was trained on pictures with the channel means 0.5000, 0.5100, 0.5000"),
        ({"data": {"mean": [0.5]}}, "was trained on pictures with the channel means 0.5000, the other"),
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_a_run_of_other_data_or_another_split_is_refused_and_named(tmp_path, change, reason, place):
    folders = [write_run(tmp_path / name, [70.0], **BASE) for name in ("a", "b")]
    folders.insert(place, write_run(tmp_path / "other", [70.0], **BASE | change))
    with pytest.raises(UsageError, match=rf"other can't be compared with .*: it {reason}.*; leave it out") as refusal:
        require_comparable(read(*folders))
    assert len(str(refusal.value).splitlines()) == 1
    assert ("--val-size" in str(refusal.value)) == ("split" in change)


def test_every_run_that_is_unlike_the_most_is_named_with_its_reason(tmp_path):
    folders = [write_run(tmp_path / name, [70.0], **BASE) for name in "abc"]
    folders.append(write_run(tmp_path / "digits", [70.0], dataset="digits"))
    folders.append(write_run(tmp_path / "split", [70.0], "val", **BASE))
    folders.append(write_run(tmp_path / "digits2", [70.0], dataset="digits"))
    with pytest.raises(UsageError) as refusal:
        require_comparable(read(*folders))
    lines = str(refusal.value).split("\nerror: ")
    found = [re.search(r"(\w+) can't be compared with .*/(\w): it (.*), the other", line) for line in lines]
    assert [match and match.groups() for match in found] == [
        ("digits", "a", "was trained on digits"),
        ("digits2", "a", "was trained on digits"),
        ("split", "a", "chose its best epoch on the val images"),
    ]


@pytest.mark.parametrize(
    ("labels", "change", "reason"),
    [
        ([0, 1, 1], {}, "was tested on 3 images, the other was tested on 2 images"),
        ([0, 1], {"test_images_sha256": "other"}, "was tested on images with the SHA-256 other"),
    ],
)
def test_runs_tested_on_other_images_are_refused(tmp_path, labels, change, reason):
    one, other = (write_run(tmp_path / name, [70.0]) for name in ("one", "other"))
    write_evaluation(one, [0, 1], [0, 1])
    write_evaluation(other, labels, labels, **change)
    with pytest.raises(UsageError, match=f"it {reason}"):
        require_comparable(read(one, other))


def test_runs_with_other_numbers_of_test_images_are_refused(tmp_path):
    folders = [write_run(tmp_path / str(number), [70.0], data={"num_test_images": number}) for number in (500, 7)]
    with pytest.raises(UsageError, match="it was tested on 7 images, the other was tested on 500 images"):
        require_comparable(read(*folders))


def test_what_a_run_does_not_say_or_can_differ_is_no_reason(tmp_path):
    one = write_run(tmp_path / "one", [70.0], **BASE)
    other = write_run(tmp_path / "other", [70.0], **BASE, max_train_images=100, data_dir="moved", val_size=0)
    larger = write_run(tmp_path / "larger", [70.0], **BASE, img_size=64, data={"mean": [0.4] * 3})
    write_evaluation(one, [0, 1], [0, 1], dataset="image-folder")
    write_evaluation(larger, [0, 1], [0, 1], dataset="image-folder", test_images_sha256="of 64 pixels")
    decoded_otherwise = write_run(tmp_path / "jpeg", [70.0], **BASE, data={"mean": [0.50006, 0.4995, 0.5]})
    require_comparable(read(one, other, larger, decoded_otherwise))
    elsewhere = write_run(tmp_path / "elsewhere", [70.0], **BASE)
    write_evaluation(elsewhere, [0] * 5, [0] * 5, dataset="image-folder", chosen_on=None)  # not on its own test images
    require_comparable(read(one, other, elsewhere))


def test_two_runs_are_compared_image_by_image(tmp_path):
    labels = [0] * 60 + [1] * 40
    answers = {"one": [0] * 55 + [1] * 45, "two": [0] * 70 + [1] * 30}
    for name, predicted in answers.items():
        write_evaluation(write_run(tmp_path / name, [70.0]), labels, predicted)
    found = comparison.compare_predictions(*read(str(tmp_path / "one"), str(tmp_path / "two")))
    counts = [found[f"num_{name}"] for name in ("both_right", "only_this_right", "only_other_right", "both_wrong")]
    assert counts == [85, 10, 5, 0]
    assert found["mcnemar_p"] == pytest.approx(2 * sum(math.comb(15, k) for k in range(6)) / 2**15)
    assert found["difference"] == pytest.approx(5)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda folder: (folder / "evaluation/evaluation.json").unlink(), "its best epoch is not evaluated"),
        (lambda folder: (folder / "evaluation/predictions.csv").unlink(), "missing or damaged"),
        (lambda folder: (folder / "evaluation/predictions.csv").write_text("label\n1\n"), "missing or damaged"),
        (lambda folder: (folder / "evaluation/predictions.csv").write_bytes(b"\xff\x00"), "missing or damaged"),
        (
            lambda folder: (folder / "evaluation/predictions.csv").write_text("label,predicted,confidence\n0,x,1\n"),
            "missing or damaged",
        ),
        (
            lambda folder: (folder / "evaluation/predictions.csv").write_text("label,predicted,confidence\n0,1,1\n"),
            "is of another evaluation",
        ),
        (
            lambda folder: (folder / "evaluation/predictions.csv").write_text("label,predicted,confidence\n"),
            "missing or damaged",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_predictions_that_do_not_fit_are_named_with_the_command_that_helps(tmp_path, break_it, reason):
    folders = [write_run(tmp_path / name, [70.0]) for name in ("one", "two")]
    for folder in folders:
        write_evaluation(folder, [0, 1], [0, 1])
    break_it(tmp_path / "two")
    with pytest.raises(RunError, match=rf"two.*{reason}.*evaluate_vit\.py"):
        comparison.compare_predictions(*read(*folders))


def test_predictions_for_images_of_another_size_are_not_compared(tmp_path):
    folders = [write_run(tmp_path / str(size), [70.0], img_size=size) for size in (32, 64)]
    for folder in folders:
        write_evaluation(folder, [0, 1], [0, 1], test_images_sha256=folder)
    require_comparable(read(*folders))
    with pytest.raises(RunError, match=r"another size: evaluate_vit\.py --compare"):
        comparison.compare_predictions(*read(*folders))
