"""compare_runs.py prints a row for each run, draws their curves, and names in one line what it can't read."""

import json
from pathlib import Path

import pytest

from compare_runs import CompareConfig, main
from training.errors import RunError, UsageError
from training.history import new_history


def write_run(folder: Path, model_name: str, accuracies: list[float], split: str = "test") -> str:
    history = {name: [1.0] * len(accuracies) for name in new_history(split)}
    history |= {"epoch": list(range(1, len(accuracies) + 1)), f"{split}_acc": accuracies}
    history["epoch_time"] = [1800.0] * len(accuracies)
    folder.mkdir()
    (folder / "training_history.json").write_text(json.dumps(history))
    (folder / "config.json").write_text(json.dumps({"model_name": model_name}))
    return str(folder)


def test_each_run_has_a_row_with_its_best_and_last_epoch_and_its_cost(tmp_path, capsys):
    one = write_run(tmp_path / "one", "VisionTransformer", [50.0, 70.5, 60.25])
    other = write_run(tmp_path / "other", "ResNet18", [80.0], split="val")
    main(CompareConfig((one, other), str(tmp_path / "figures" / "both.png")))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [one, "VisionTransformer", "3", "test", "70.50%", "2", "60.25%", "1", "1", "h", "30", "min"] in rows
    assert [other, "ResNet18", "1", "val", "80.00%", "1", "80.00%", "1", "30", "min", "00", "s"] in rows
    assert (tmp_path / "figures" / "both.png").read_bytes().startswith(b"\x89PNG")


def test_no_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="folder of a run"):
        main(CompareConfig((), str(tmp_path / "x.png")))


@pytest.mark.parametrize("name", ["training_history.json", "config.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"epoch": [1]}'])
def test_a_folder_that_holds_no_whole_run_is_named(tmp_path, name, content):
    folder = write_run(tmp_path / "run", "ResNet18", [80.0])
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(RunError, match=name):
        main(CompareConfig((folder,), str(tmp_path / "x.png")))
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("output", ["", ".", "curves.pdf"])
def test_the_figures_file_must_be_a_png(output):
    with pytest.raises(ValueError, match="output"):
        CompareConfig(("run",), output)
