"""The trained model that comes with the repository works without training or a download."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import evaluate_vit

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path for path in (ROOT / "models").iterdir() if path.is_dir())
PICTURES = sorted((ROOT / "tests" / "pictures").glob("*.jpg"))  # a test image of each class, named after it


def test_there_is_a_model_and_a_picture_of_each_class():
    assert FOLDERS
    assert len(PICTURES) == 10


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_recognizes_test_images(folder, tmp_path, capsys):
    files = tuple(str(path) for path in PICTURES)
    evaluate_vit.main(evaluate_vit.EvaluateConfig(checkpoint=str(folder), images=files, output_dir=str(tmp_path)))
    found = dict(re.findall(r"(\w+)\.jpg: (\w+)", capsys.readouterr().out))
    assert found == {path.stem: path.stem for path in PICTURES}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_card_has_the_accuracy_of_its_evaluation_and_it_is_small(folder):
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["num_images"] == 10_000
    assert f"{evaluation['accuracy']:.2f} %" in (folder / "README.md").read_text()
    ignored = folder / "evaluation" / "evaluation.json"  # where an evaluation of the folder is written
    git = ["git", "-C", str(ROOT), "check-ignore", "--quiet", str(ignored)]
    assert subprocess.run(git, check=False).returncode in (0, 128)  # 128: this is no clone
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 12e6
