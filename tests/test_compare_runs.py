"""compare_runs.py prints and writes the table, draws the curves, tests two runs, and names what it can't read."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from compare_runs import CompareConfig, main
from tests.run_folders import write_evaluation, write_run
from training.errors import RunError, UsageError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_each_run_has_a_row_and_all_files_are_written(capsys):
    one = write_run(Path("runs/one"), [50.0, 70.5, 60.25])
    other = write_run(Path("runs/other"), [80.0], model_name="ResNet18", batch_size=128)
    main(CompareConfig((one, other), "figures/both.png", "m/table.md", "c/table.csv", "j/table.json"))
    said = capsys.readouterr().out
    rows = [line.split()[:9] for line in said.splitlines()]
    assert ["one", "VisionTransformer", "1", "(42)", "3", "test", "70.50", "60.25", "70.50"] in rows
    assert ["other", "ResNet18", "1", "(42)", "1", "test", "80.00", "80.00", "80.00"] in rows
    assert "Curves: figures/both.png" in said
    assert "not tested: runs/one: its best epoch is not evaluated: run evaluate_vit.py --checkpoint runs/one" in said
    assert Path("figures/both.png").read_bytes().startswith(b"\x89PNG")
    assert Path("m/table.md").read_text().startswith("| run | model |")
    with open("c/table.csv") as file:
        assert [row["best_accuracy"] for row in csv.DictReader(file)] == ["70.5", "80.0"]
    content = json.loads(Path("j/table.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["one", "other"]
    assert content["difference"] is None


def test_two_evaluated_runs_are_tested(capsys):
    one, other = write_run(Path("one"), [70.0]), write_run(Path("other"), [70.0], seed=7)
    write_evaluation(one, [0] * 10, [0] * 10)
    write_evaluation(other, [0] * 10, [0] * 4 + [1] * 6)
    main(CompareConfig((one, other), json="table.json"))
    assert "First minus second: +60.00 points" in (said := capsys.readouterr().out)
    assert "Only the first gets 6 images right, only the second 0: p = 0.031" in said
    found = json.loads(Path("table.json").read_text())["difference"]
    assert (found["first"], found["second"], found["mcnemar_p"]) == ("one", "other", pytest.approx(2 / 2**6))


def test_several_seeds_are_compared_with_the_first_row(capsys):
    runs = [write_run(Path(f"a/seed-{seed}"), [70.0 + seed], seed=seed) for seed in (1, 2, 3)]
    runs += [write_run(Path(f"b/seed-{seed}"), [80.0 + seed], seed=seed, depth=2) for seed in (1, 2, 3)]
    main(CompareConfig(tuple(runs), json="table.json"))
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "a 3 (1, 2, 3) 72.00 ± 1.00 the reference" in said
    assert "b 3 (1, 2, 3) 82.00 ± 1.00 +10.00 +7.73 to +12.27 better" in said
    assert "Where both sides have several seeds, the interval is Welch's, over the seeds." in said
    assert any("chosen on these same test images" in line for line in said)
    [found] = json.loads(Path("table.json").read_text())["over_seeds"]
    assert (found["name"], found["from"], found["points"], found["verdict"]) == ("b", "a", 10.0, "better")


def test_epochs_chosen_on_held_out_images_need_no_warning(capsys):
    runs = [write_run(Path(f"a/seed-{seed}"), [70.0 + seed], split="val", seed=seed) for seed in (1, 2)]
    runs += [write_run(Path("b"), [70.0], split="val", depth=2)]
    for run in runs:
        (Path(run) / "test_result.json").write_text(json.dumps({"test_loss": 1.0, "test_acc": 70.0, "epoch": 1}))
    main(CompareConfig(tuple(runs)))
    said = capsys.readouterr().out
    assert "the reference" in said
    assert "chosen on these same" not in said


def test_an_unfinished_run_is_no_reference(capsys):
    runs = [write_run(Path("a"), [90.0], num_epochs=2)]
    runs += [write_run(Path(f"b/seed-{seed}"), [70.0], seed=seed, depth=3) for seed in (1, 2)]
    runs += [write_run(Path("c"), [71.0], depth=4)]
    main(CompareConfig(tuple(runs), json="table.json"))
    assert [(row["name"], row["from"]) for row in json.loads(Path("table.json").read_text())["over_seeds"]] == [
        ("c", "b")
    ]
    assert "the reference" in capsys.readouterr().out


def test_seeds_of_one_experiment_alone_are_compared_with_nothing(capsys):
    main(CompareConfig(tuple(write_run(Path(f"seed-{seed}"), [70.0], seed=seed) for seed in (1, 2, 3)), json="t.json"))
    assert "reference" not in capsys.readouterr().out
    assert json.loads(Path("t.json").read_text())["over_seeds"] == []


def test_three_runs_are_not_tested_in_pairs(capsys):
    main(CompareConfig(tuple(write_run(Path(name), [70.0], seed=i) for i, name in enumerate("abc"))))
    assert "minus" not in (said := capsys.readouterr().out)
    assert "not tested" not in said


def test_a_folder_that_is_named_twice_is_one_run(capsys):
    main(CompareConfig((write_run(Path("a"), [70.0]), "a/", "./a")))
    assert "±" not in (said := capsys.readouterr().out)
    assert said.count("\na ") == len(said.split("\n\n")) - 1


def test_a_link_that_leads_to_itself_is_left_out_and_named():
    Path("loop").symlink_to("loop")
    with pytest.raises(RunError, match="left out: loop holds no run"):
        main(CompareConfig((write_run(Path("a"), [70.0]), "loop")))


def test_no_run_is_a_usage_error():
    with pytest.raises(UsageError, match="folder of a run"):
        main(CompareConfig((), "x.png"))


def test_a_broken_run_among_good_ones_is_named_at_the_end(capsys):
    good = [write_run(Path(f"good/{seed}"), [70.0 + seed], seed=seed) for seed in range(3)]
    unfinished = write_run(Path("unfinished"), [70.0], num_epochs=5)
    broken = write_run(Path("broken"), [70.0])
    Path("broken/config.json").write_text("{")
    reason = "left out: broken/config.json is missing or damaged\nerror: left out: missing holds no run"
    with pytest.raises(RunError, match=reason):
        main(CompareConfig((good[0], broken, *good[1:], "missing", unfinished), "x.png"))
    said = capsys.readouterr().out
    assert "71.00 ± 1.00" in said
    assert "1 of 5, unfinished" in said
    assert "broken" not in said
    assert Path("x.png").exists()


def test_nothing_but_broken_runs_writes_nothing():
    with pytest.raises(RunError, match="left out: missing"):
        main(CompareConfig(("missing",), "x.png"))
    assert not list(Path().iterdir())


def test_a_run_of_other_data_is_refused_before_anything_is_written(capsys):
    folders = [write_run(Path("runs/a"), [70.0]), write_run(Path("runs/digits"), [99.0], dataset="digits")]
    reason = "runs/digits can't be compared with runs/a: it was trained on digits.*\n.*left out: missing holds no run"
    with pytest.raises(UsageError, match=reason):
        main(CompareConfig((*folders, "missing"), "out/x.png"))
    assert not Path("out").exists()
    assert capsys.readouterr().out == ""


def test_runs_that_chose_on_other_numbers_of_images_are_warned_of_under_the_table(capsys):
    folders = [write_run(Path(name), [70.0 + i], "val", val_size=1000, seed=i) for i, name in enumerate("ab")]
    main(CompareConfig(tuple(folders), "x.png"))
    assert capsys.readouterr().err == ""
    main(CompareConfig((*folders, write_run(Path("c"), [70.0], "val", val_size=5000)), "x.png"))
    [warning] = capsys.readouterr().err.splitlines()
    assert "chose their best epochs on different held-out images (1,000 images: a, b; 5,000 images: c)" in warning


def test_forty_runs_are_drawn_and_those_without_a_colour_counted(capsys):
    main(CompareConfig(tuple(write_run(Path(f"runs/{i}"), [i, i + 1.0], depth=i + 1) for i in range(40)), "x.png"))
    assert "Curves: x.png (22 of 40, those with the lowest accuracies, are grey)" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["output", "markdown", "csv", "json"])
def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_flag(flag, capsys):
    Path("file").write_text("in the way")
    with pytest.raises(RunError, match=f"can't write to the folder file.*; choose another --{flag}"):
        main(CompareConfig((write_run(Path("a"), [70.0]),), **{flag: "file/x.png"}))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("output", ["", ".", "curves.pdf"])
def test_the_figures_file_must_be_a_png(output):
    with pytest.raises(ValueError, match="output"):
        CompareConfig(("run",), output)


def test_the_exit_code_of_the_command_tells_broken_runs_from_runs_that_do_not_fit():
    good, digits = write_run(Path("good"), [70.0]), write_run(Path("digits"), [99.0], dataset="digits")
    for folders, code, lines in (((good, "missing"), 1, 1), ((good, digits), 2, 1)):
        command = [sys.executable, ROOT / "compare_runs.py", *folders, "--output", "x.png"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert len(done.stderr.splitlines()) == lines
        assert done.stderr.startswith("error: ")
