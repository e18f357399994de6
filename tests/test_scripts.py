"""The scripts from end to end, on scikit-learn's digits: the files of a run, its console, resuming, and the evaluator.

One run of each of the two scripts is a fresh process. The rest runs in this process, which has torch loaded already.
tests/faults/ has the compiled runs.
"""

import base64
import io
import json
import math
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm.models.vision_transformer
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from config_vit_cifar10 import ViTConfig
from tests.same_runs import TIMES, assert_same_bits
from training import console, engine, errors, history
from training.data import load_dataset
from training.data.loader import ImageLoader
from training.run import Run
from training.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
TINY = [
    "--preset=demo", "--num-epochs=3", "--warmup-epochs=1", "--depth=1", "--embed-dim=24", "--max-train-images=128",
    "--batch-size=1", "--auto-augment", "--save-every=2", "--device=cpu", "--precision=fp32",
]  # fmt: skip
SHORT = [*TINY, "--num-epochs=1", "--batch-size=64"]
ALL_ON = [
    *TINY, "--batch-size=20", "--augment-policy=randaugment", "--randaugment-magnitude=12", "--random-erasing=0.5",
    "--mixup-alpha=0.8", "--cutmix-alpha=1", "--mix-probability=0.7", "--label-smoothing=0.1",
    "--num-workers=2", "--val-size=100",
]  # fmt: skip
NEW_RECIPE = [
    "--preset=cpu-1h", "--dataset=digits", "--img-size=16", "--val-size=100", "--depth=1", "--max-train-images=128",
    "--batch-size=20", "--num-epochs=3", "--save-every=2", "--device=cpu", "--precision=fp32",
]  # fmt: skip
CHECKPOINTS = ("final_model.pth", "best_model.pth", "checkpoint_epoch_2.pth", "last.pth", "last.prev.pth")


class Result(NamedTuple):
    code: int
    out: str
    err: str


Script = Callable[..., Result]


def in_new_process(script: str, *args: Any, cwd: Path) -> Result:
    command = [sys.executable, ROOT / script, *map(str, args)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", check=False)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run(monkeypatch, capfd) -> Script:
    """Run a script as `python SCRIPT ARGS` does, but in this process."""

    def in_this_process(script: str, *args: Any) -> Result:
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
            assert isinstance(code, int)
        return Result(code, *capfd.readouterr())

    return in_this_process


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Result]:
    """A run of three epochs, started in another folder than the scripts', and its output."""
    cwd = tmp_path_factory.mktemp("trained")
    return cwd / "run", in_new_process("train_vit_cifar10.py", *TINY, "--output-dir", "run", cwd=cwd)


@pytest.fixture(scope="module")
def evaluated(trained) -> tuple[Path, Result]:
    folder = trained[0]
    arguments = ["--checkpoint", folder / "best_model.pth", "--output-dir=evaluation", "--device=cpu"]
    return folder.with_name("evaluation"), in_new_process("evaluate_vit.py", *arguments, cwd=folder.parent)


def read_strict_json(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{path} holds {constant}"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def timm_logits(checkpoint: Path) -> tuple[Tensor, Tensor]:
    """Return the logits of timm's model with a checkpoint's weights for the digits' test images, and their labels."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=3, num_classes=10
    ).eval()
    model.load_state_dict(load(checkpoint)["model"])
    digits = load_dataset("digits", "", img_size=16)
    pixels = digits.train_images.double() / 255
    mean, std = (f(pixels, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    with torch.inference_mode():
        return model(((digits.test_images.double() / 255 - mean) / std).float()), digits.test_labels


def test_a_run_leaves_the_files_that_are_promised(trained):
    folder, result = trained
    assert (result.code, result.err) == (0, "")
    assert files_of(folder).keys() == {
        "config.json", "best_model.pth", "checkpoint_epoch_2.pth", "checkpoint_epoch_3.pth", "final_model.pth",
        "last.pth", "last.prev.pth", "training_history.json", "training_curves.png", "augmented_images.png",
    }  # fmt: skip
    assert (folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_history_is_strict_json_of_equally_long_lists(trained):
    records = read_strict_json(trained[0] / "training_history.json")
    assert records.keys() == {"epoch", "train_loss", "train_acc", "test_loss", "test_acc", "lr"} | TIMES
    assert {len(values) for values in records.values()} == {3}
    assert records["epoch"] == [1, 2, 3]
    for name in ("train_acc", "test_acc"):
        assert all(0 < acc < 100 for acc in records[name])
    assert all(360 * acc / 100 == pytest.approx(round(360 * acc / 100)) for acc in records["test_acc"])  # in percent
    # 128 steps an epoch: the last of the warmup has the peak, the last of all is a step short of the cosine's end
    cosine = [0.001, 0.0005 * (1 + math.cos(math.pi * 127 / 256)), 0.0005 * (1 + math.cos(math.pi * 255 / 256))]
    assert records["lr"] == pytest.approx(cosine, rel=1e-6, abs=0)


def test_the_console_says_what_the_history_says_in_the_promised_form(trained):
    folder, result = trained
    records = read_strict_json(folder / "training_history.json")
    epochs = re.split(r"\nEpoch \[(\d+)/3\]\n-{70}\n", result.out)
    assert epochs[1::2] == ["1", "2", "3"]
    for i, said in enumerate(epochs[2::2]):
        assert re.search(
            r"^  Batch \[100/128\] \| Loss: \d\.\d{4} \| Acc: \d+\.\d\d% \| LR: 0\.\d{6}$", said, re.MULTILINE
        )
        summary = (
            "\n  Epoch Summary:\n"
            f"    Train Loss: {records['train_loss'][i]:.4f} | Train Acc: {records['train_acc'][i]:5.2f}%\n"
            f"    Test Loss:  {records['test_loss'][i]:.4f} | Test Acc:  {records['test_acc'][i]:5.2f}%\n"
            f"    Learning Rate: {records['lr'][i]:.6f}\n"
            f"    Time: {records['epoch_time'][i]:.1f}s\n"
        )
        if records["test_acc"][i] > max(records["test_acc"][:i], default=-1):
            summary += "    ✓ New best accuracy! Saved checkpoint.\n"
        assert summary in said
        assert said.count("New best") == summary.count("New best")


def test_the_saved_settings_repeat_the_run(trained):
    folder, _ = trained
    saved = read_strict_json(folder / "config.json")
    config = ViTConfig(**saved["config"])
    assert (config.embed_dim, config.max_train_images, config.preset) == (24, 128, "demo")
    assert saved["command"][1:] == [str(ROOT / "train_vit_cifar10.py"), *TINY, "--output-dir", "run"]
    assert torch.__version__.startswith(saved["versions"]["torch"])
    assert saved["threads"] == 1
    assert load(folder / "best_model.pth")["config"] == saved["config"]


def test_the_best_model_is_that_of_the_best_epoch_and_of_equals_the_first(run, tmp_path, monkeypatch):
    accuracies = iter([20.0, 50.0, 50.0, 30.0])
    monkeypatch.setattr(engine, "evaluate", lambda *args: {"test_loss": 1.0, "test_acc": next(accuracies)})
    result = run("train_vit_cifar10.py", *SHORT, "--num-epochs=4", "--save-every=1", "--output-dir", tmp_path / "run")
    assert (result.code, result.err) == (0, "")
    assert load(tmp_path / "run" / "best_model.pth")["epoch"] == 2
    epochs = [load(tmp_path / "run" / f"checkpoint_epoch_{epoch}.pth")["model"] for epoch in (1, 2, 3)]
    best = load(tmp_path / "run" / "best_model.pth")["model"]
    assert [all(torch.equal(weights[name], best[name]) for name in best) for weights in epochs] == [False, True, False]
    assert ["New best" in said for said in result.out.split("\nEpoch [")[1:]] == [True, True, False, False]


def test_the_evaluator_writes_the_files_that_are_promised(evaluated):
    folder, result = evaluated
    assert (result.code, result.err) == (0, "")
    assert files_of(folder).keys() == {
        "evaluation.json", "training_curves.png", "confusion_matrix.png", "per_class_accuracy.png", "predictions.png",
        "mistakes.png", "reliability.png", "confidence.png", "attention.png", "position_embeddings.png",
        "patch_filters.png", "report.html", "predictions.csv",
    }  # fmt: skip


def test_the_evaluator_finds_exactly_what_the_training_run_found(trained, evaluated):
    records = read_strict_json(trained[0] / "training_history.json")
    evaluation = read_strict_json(evaluated[0] / "evaluation.json")
    best = records["test_acc"].index(max(records["test_acc"]))
    assert evaluation["accuracy"] == records["test_acc"][best]
    assert evaluation["loss"] == records["test_loss"][best]
    assert evaluation["epoch"] == best + 1
    assert f"{evaluation['accuracy']:.2f}%" in evaluated[1].out


def test_the_evaluation_is_that_of_timms_model_with_the_same_weights(trained, evaluated):
    evaluation = read_strict_json(evaluated[0] / "evaluation.json")
    logits, labels = timm_logits(trained[0] / "best_model.pth")
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels.numpy(), logits.argmax(dim=1).numpy()), 1)
    assert evaluation["confusion_matrix"] == matrix.tolist()
    assert evaluation["num_images"] == matrix.sum() == 360
    assert evaluation["accuracy"] == pytest.approx(100 * matrix.trace() / 360)
    assert evaluation["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    for i, row in enumerate(evaluation["per_class"]):
        right, predicted, there = matrix[i, i], matrix[:, i].sum(), matrix[i].sum()
        assert (row["name"], row["num_images"], row["num_correct"]) == (str(i), there, right)
        assert row["accuracy"] == pytest.approx(100 * right / there)
        assert row["recall"] == pytest.approx(right / there)
        assert row["precision"] == pytest.approx(right / max(1, predicted))
        assert row["f1"] == pytest.approx(2 * right / (there + predicted))


class Page(HTMLParser):
    """The tags, addresses and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.attributes, self.addresses, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text += data


def test_the_report_holds_its_figures_and_loads_nothing(evaluated):
    folder, _ = evaluated
    page = Page(folder / "report.html")
    figures = [base64.b64encode(path.read_bytes()).decode() for path in folder.glob("*.png")]
    assert len(figures) == 10
    assert {f"data:image/png;base64,{figure}" for figure in figures} < set(page.addresses)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\(", (folder / "report.html").read_text(encoding="utf-8"))
    assert f"{read_strict_json(folder / 'evaluation.json')['accuracy']:.2f} %" in page.text


def test_a_picture_gets_the_classes_that_timms_model_gives_it(trained, run, tmp_path):
    best = trained[0] / "best_model.pth"
    for i, mode in enumerate(("RGB", "L")):
        pixels = load_dataset("digits", "", img_size=16).test_images[i].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{mode}.png")
    result = run(
        "evaluate_vit.py", "--device=cpu", "--checkpoint", best, "--images", tmp_path / "RGB.png", tmp_path / "L.png"
    )
    assert (result.code, result.err) == (0, "")
    expected = timm_logits(best)[0].softmax(dim=1).topk(5)
    *lines, last = result.out.splitlines()
    assert last.startswith("Figures: ")
    for i, (line, name) in enumerate(zip(lines, ("RGB.png", "L.png"), strict=True)):
        assert line.startswith(f"{tmp_path / name}: ")
        guesses = re.findall(r"(\d) (\d+\.\d)%", line.rsplit(": ", 1)[1])
        assert [int(digit) for digit, _ in guesses] == expected.indices[i].tolist()
        percent = (100 * expected.values[i]).tolist()
        assert [float(chance) for _, chance in guesses] == pytest.approx(percent, abs=0.06)


def test_a_picture_that_cannot_be_read_is_one_line(trained, run, tmp_path):
    (tmp_path / "note.jpg").write_text("no picture")
    result = run(
        "evaluate_vit.py",
        "--device=cpu",
        "--checkpoint",
        trained[0] / "best_model.pth",
        "--images",
        tmp_path / "note.jpg",
    )
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"error: .*note\.jpg.*\n", result.err)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(trained, run, tmp_path):
    assert run("train_vit_cifar10.py", *TINY, "--output-dir", tmp_path / "again").code == 0
    assert_same_bits(trained[0], tmp_path / "again", CHECKPOINTS)
    assert run("train_vit_cifar10.py", *TINY, "--output-dir", tmp_path / "other", "--seed", 7).code == 0
    with pytest.raises(AssertionError, match=r"(train|test)_(loss|acc)"):
        assert_same_bits(trained[0], tmp_path / "other", CHECKPOINTS)


def send(numbers: tuple[signal.Signals, ...]) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def stop_after_batches(monkeypatch, num_batches: int, *numbers: signal.Signals) -> None:
    after_sync, batches = Run.after_sync, []

    def stop_after_sync(run):
        batches.append(1)
        if len(batches) == num_batches:
            send(numbers)
        after_sync(run)

    monkeypatch.setattr(Run, "after_sync", stop_after_sync)


def stop_in_evaluation(monkeypatch, epoch: int, *numbers: signal.Signals) -> None:
    iterate, batches = ImageLoader.__iter__, []

    def iterate_and_stop(loader):
        for batch in iterate(loader):
            if loader.split != "train":
                batches.append(1)
                if len(batches) == 3 * epoch - 1:  # the second of the three that an evaluation takes
                    send(numbers)
            yield batch

    monkeypatch.setattr(ImageLoader, "__iter__", iterate_and_stop)


def stop_before_writing_the_history(monkeypatch, epoch: int, *numbers: signal.Signals) -> None:
    write_json = history.write_json

    def write_or_stop(path, content):
        if path.name == "training_history.json" and len(content["epoch"]) == epoch:
            send(numbers)
        write_json(path, content)

    monkeypatch.setattr(history, "write_json", write_or_stop)


NOTE = "\nstopping after this step; Ctrl-C once more stops at once, without saving\n"
CTRL_C, SIGTERM = signal.SIGINT, signal.SIGTERM
EACH_STEP = [*TINY, "--save-minutes=1e-9"]


def command_after_stop(result: Result, folder: Path) -> list[str]:
    """Return the flags of the command that a stopped run prints, as a shell splits them."""
    said = re.fullmatch(rf"{NOTE}\nstopped\. saved in {re.escape(str(folder))}\. Go on with: (.*)\n", result.err)
    assert said, result.err
    python, script, *flags = shlex.split(said.group(1))
    assert (shutil.which(python), Path(script)) == (sys.executable, ROOT / "train_vit_cifar10.py")
    return flags


@pytest.mark.parametrize(
    ("flags", "stop", "when", "number", "code", "done"),
    [
        pytest.param(TINY, stop_after_batches, 50, CTRL_C, 130, (0, 50), id="Ctrl-C amid epoch 1"),
        pytest.param(TINY, stop_in_evaluation, 3, SIGTERM, 143, (2, 128), id="SIGTERM in the last evaluation"),
        pytest.param(
            TINY, stop_before_writing_the_history, 2, SIGTERM, 143, (2, 1), id="SIGTERM while epoch 2 is saved"
        ),
        pytest.param(ALL_ON, stop_after_batches, 7 + 3, CTRL_C, 130, (1, 3), id="Ctrl-C amid epoch 2, with all parts"),
        pytest.param(NEW_RECIPE, stop_after_batches, 7 + 3, SIGTERM, 143, (1, 3), id="SIGTERM, the new recipe"),
    ],
)
def test_a_stopped_run_says_how_to_go_on_and_ends_as_one_that_was_never_stopped(
    trained, run, tmp_path, monkeypatch, flags, stop, when, number, code, done
):
    folder, unstopped = tmp_path / "my run's", trained[0]
    if flags is not TINY:
        unstopped = tmp_path / "unstopped"
        assert run("train_vit_cifar10.py", *flags, "--output-dir", unstopped).code == 0
    with monkeypatch.context() as patched:
        stop(patched, when, number)
        stopped = run("train_vit_cifar10.py", *flags, "--output-dir", folder, "--overwrite")
    assert stopped.code == code
    go_on = command_after_stop(stopped, folder)
    assert go_on == [*flags, "--output-dir", str(folder), "--resume"]
    at_stop, bytes_at_stop = load(folder / "last.pth"), (folder / "last.pth").read_bytes()
    assert (at_stop["epoch"], at_stop["epoch_sums"]["step"]) == done
    torch.manual_seed(12345)  # a new process would not have this one's random state either
    resumed = run("train_vit_cifar10.py", *go_on)
    assert (resumed.code, resumed.err) == (0, "")
    assert files_of(folder).keys() == files_of(unstopped).keys()
    if at_stop["epoch"] == 2:  # the last epoch: the state before its end is that of the stop
        assert (folder / "last.prev.pth").read_bytes() == bytes_at_stop
        shutil.copy(unstopped / "last.prev.pth", folder)
    assert_same_bits(folder, unstopped, CHECKPOINTS)


@pytest.mark.parametrize(
    ("flags", "stop", "when", "numbers", "code", "done"),
    [
        pytest.param(
            TINY, stop_after_batches, 128 + 50, (SIGTERM, CTRL_C), 130, (1, 0), id="SIGTERM and Ctrl-C amid epoch 2"
        ),
        pytest.param(
            EACH_STEP, stop_after_batches, 128 + 50, (CTRL_C, SIGTERM), 143, (1, 49), id="Ctrl-C and SIGTERM in a step"
        ),
        pytest.param(
            TINY, stop_before_writing_the_history, 2, (SIGTERM, SIGTERM), 143, (2, 0), id="two SIGTERM at epoch 2's end"
        ),
        pytest.param(
            TINY, stop_before_writing_the_history, 3, (SIGTERM, SIGTERM), 143, (3, 0), id="two SIGTERM at the run's end"
        ),
    ],
)  # fmt: skip
def test_a_second_signal_stops_at_once_and_the_run_goes_on_from_its_last_save_to_the_same_bits(
    trained, run, tmp_path, monkeypatch, flags, stop, when, numbers, code, done
):
    folder = tmp_path / "run"
    command = ["train_vit_cifar10.py", *flags, "--output-dir", folder]
    with monkeypatch.context() as patched:
        stop(patched, when, *numbers)
        stopped = run(*command)
    assert stopped.code == code
    assert stopped.err.startswith(f"{NOTE}\nstopped. What was saved before stays. Go on with: ")
    at_stop = load(folder / "last.pth")
    assert (at_stop["epoch"], at_stop["epoch_sums"]["step"]) == done
    torch.manual_seed(12345)
    resumed = run("train_vit_cifar10.py", *TINY, "--output-dir", folder, "--resume")  # how often to save is free
    assert (resumed.code, resumed.err) == (0, "")
    assert files_of(folder).keys() == files_of(trained[0]).keys()
    assert_same_bits(folder, trained[0], CHECKPOINTS)


def test_a_reader_that_is_gone_at_the_end_leaves_the_last_weights_to_go_on_from(run, tmp_path, monkeypatch):
    """The best model's weights, which take their place, are tested after the last epoch."""

    def write_json(path: Path, content: Any, write=history.write_json) -> None:
        if path.name == "test_result.json":
            raise BrokenPipeError
        write(path, content)

    accuracies = iter([50.0, 10.0, 10.0, 50.0])  # so that the best epoch is not the last
    with monkeypatch.context() as patched:
        patched.setattr(engine, "evaluate", lambda *args: {"val_loss": 1.0, "val_acc": next(accuracies)})
        patched.setattr(history, "write_json", write_json)
        stopped = run("train_vit_cifar10.py", *NEW_RECIPE, "--output-dir", tmp_path)
    assert stopped.code == 1
    assert "nobody reads the output any more; saved in" in stopped.err
    last, final, best = (load(tmp_path / f"{name}.pth")["model"] for name in ("last", "final_model", "best_model"))
    assert all(torch.equal(last[name], final[name]) for name in final)
    assert not torch.equal(best["head.weight"], final["head.weight"])


def test_a_signal_in_the_last_save_ends_the_finished_run(trained, run, tmp_path, monkeypatch):
    command = ["train_vit_cifar10.py", *TINY, "--output-dir", tmp_path / "run"]
    with monkeypatch.context() as patched:
        stop_before_writing_the_history(patched, 3, SIGTERM)
        assert run(*command).code == 143
    assert_same_bits(tmp_path / "run", trained[0], CHECKPOINTS)
    assert "This run has all its 3 epochs already." in run(*command, "--resume").out


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]])
def test_a_stop_before_the_run_has_begun_asks_for_the_same_command(trained, run, monkeypatch, flags):
    folder = trained[0] if flags else trained[0].with_name("new")
    before = files_of(trained[0])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.data.load_dataset", interrupt)
    result = run("train_vit_cifar10.py", *TINY, "--output-dir", folder, *flags)
    assert result == (130, "", "\nstopped. Nothing new was saved yet: give the same command again\n")
    assert files_of(trained[0]) == before
    assert not trained[0].with_name("new").exists()


def test_a_stop_as_soon_as_the_folder_holds_the_run_asks_for_resume(run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.run.save_contact_sheet", interrupt)
    result = run("train_vit_cifar10.py", *SHORT, "--output-dir", tmp_path / "run")
    assert (result.code, result.out) == (130, "")
    assert result.err.endswith("--resume\n")
    monkeypatch.undo()
    assert run("train_vit_cifar10.py", *SHORT, "--output-dir", tmp_path / "run", "--resume").code == 0


def test_a_run_that_is_extended_has_the_rest_of_the_longer_schedule(trained, run, tmp_path, monkeypatch):
    longer = [*TINY, "--num-epochs=5"]
    folders = [shutil.copytree(trained[0], tmp_path / name) for name in ("unstopped", "stopped")]
    commands = [["train_vit_cifar10.py", *longer, "--output-dir", folder, "--resume", "--extend"] for folder in folders]
    result = run(*commands[0])
    assert (result.code, result.err) == (0, "")
    short, records = (read_strict_json(folder / "training_history.json") for folder in (trained[0], folders[0]))
    assert records["epoch"] == [1, 2, 3, 4, 5]
    assert {name: values[:3] for name, values in records.items()} == short
    cosine = [0.0005 * (1 + math.cos(math.pi * step / (4 * 128))) for step in (3 * 128 - 1, 4 * 128 - 1)]
    assert records["lr"][3:] == pytest.approx(cosine, rel=1e-6, abs=0)
    assert load(folders[0] / "final_model.pth")["epoch"] == 5
    for saved in (load(folders[0] / "last.pth"), read_strict_json(folders[0] / "config.json")):
        assert (saved["config"]["num_epochs"], saved["extended_from"]) == (5, [3])
    with monkeypatch.context() as patched:
        stop_after_batches(patched, 50, CTRL_C)
        stopped = run(*commands[1])
    go_on = command_after_stop(stopped, folders[1])
    assert "--extend" not in go_on
    assert run("train_vit_cifar10.py", *go_on).code == 0
    assert_same_bits(folders[0], folders[1], CHECKPOINTS)
    assert load(folders[1] / "last.pth")["extended_from"] == [3]


def test_the_command_that_extended_a_run_goes_on_with_it_when_given_again(trained, run, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    command = ["train_vit_cifar10.py", *TINY, "--num-epochs=4", "--output-dir", folder, "--resume", "--extend"]
    assert run(*command).code == 0
    again = run(*command)
    assert (again.code, again.err) == (0, "")
    assert "all its 4 epochs" in again.out
    assert load(folder / "last.pth")["extended_from"] == [3]


def test_a_run_that_is_extended_has_no_more_small_images(run, tmp_path, monkeypatch):
    flags = [*TINY, "--small-images-share=0.5", "--max-train-images=64", "--output-dir", tmp_path / "run"]
    assert run("train_vit_cifar10.py", *flags, "--num-epochs=2").code == 0
    sizes = []
    monkeypatch.setattr(
        "vit.PatchEmbed.forward",
        lambda self, x: sizes.append(x.shape[-1] if self.training else 0) or self.proj(x).flatten(2).transpose(1, 2),
    )
    longer = [*flags, "--num-epochs=6", "--resume", "--extend"]
    assert run("train_vit_cifar10.py", *longer).code == 0
    assert set(sizes) == {0, 16}
    config = read_strict_json(tmp_path / "run" / "config.json")["config"]
    assert ViTConfig(**config).small_epochs == 1
    assert "all its 6 epochs" in run("train_vit_cifar10.py", *longer).out


def test_extending_without_more_epochs_is_refused(trained, run):
    before = files_of(trained[0])
    result = run("train_vit_cifar10.py", *TINY, "--output-dir", trained[0], "--resume", "--extend")
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: --extend needs more than the 3 epochs .*--num-epochs\n", result.err)
    assert files_of(trained[0]) == before


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_folder_that_another_run_holds_is_refused_and_left_alone(trained, run, flags):
    with RunFolder(trained[0]):
        before = files_of(trained[0])
        result = run("train_vit_cifar10.py", *TINY, "--output-dir", trained[0], *flags)
        assert (result.code, result.out) == (1, "")
        assert re.fullmatch(rf"error: {trained[0]} is in use by process {os.getpid()} on .*\n", result.err)
        assert files_of(trained[0]) == before


def test_a_disk_without_room_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9 << 20))
    result = run("train_vit_cifar10.py", *SHORT, "--embed-dim=96", "--output-dir", tmp_path / "a" / "run")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"error: a run of these settings needs \d+ MiB in .*, where 9 MiB are free: .*\n", result.err)
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_finished_run_changes_nothing(trained, run):
    before = files_of(trained[0])
    result = run("train_vit_cifar10.py", *TINY, "--output-dir", trained[0], "--resume")
    assert (result.code, result.err) == (0, "")
    assert "all its 3 epochs" in result.out
    assert files_of(trained[0]) == before


def test_resuming_with_other_settings_is_refused_with_a_list_of_them(trained, run):
    before = files_of(trained[0])
    others = ["--seed=7", "--num-epochs=4", "--no-auto-augment", "--mixup-alpha=0.5"]
    free = ["--num-workers=2", "--save-every=9", "--no-cache"]
    result = run("train_vit_cifar10.py", *TINY, *others, *free, "--output-dir", trained[0], "--resume")
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: .*\n", result.err)
    for difference in (
        "seed was 42, is 7",
        "num_epochs was 3, is 4",
        "auto_augment was True, is False",
        "mixup_alpha was 0.0",
    ):
        assert difference in result.err
    for same_or_free in ("depth", "batch_size", "output_dir", "num_workers", "save_every", "cache"):
        assert f"{same_or_free} was" not in result.err
    assert files_of(trained[0]) == before


def test_a_used_folder_is_refused_with_the_flags_that_help(trained, run):
    before = files_of(trained[0])
    result = run("train_vit_cifar10.py", *TINY, "--output-dir", trained[0])
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: .* --resume.* --overwrite.*\n", result.err)
    assert files_of(trained[0]) == before


def test_overwrite_moves_the_old_run_aside(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("the old run")
    result = run("train_vit_cifar10.py", *SHORT, "--output-dir", tmp_path / "run", "--overwrite")
    assert (result.code, result.err) == (0, "")
    [aside] = (tmp_path / "run").glob("old-*")
    assert files_of(aside) == {"config.json": b"the old run"}
    assert str(aside) in result.out
    assert load(tmp_path / "run" / "final_model.pth")["epoch"] == 1


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (["--dataset", "image-folder", "--data-dir", "nowhere"], 1, "nowhere"),
        (["--resume"], 1, "resume"),
        (["--patch-size", "5"], 2, "patch_size"),
        (["--warmup-epochs", "4"], 2, "warmup_epochs"),
        (["--num-epoch", "3"], 2, "--num-epoch"),
        (["--max-train-images", "1438"], 2, "max_train_images"),
        (["--max-train-images", "0", "--val-size", "1430"], 2, "val_size"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(run, tmp_path, monkeypatch, args, code, named):
    monkeypatch.chdir(tmp_path)
    result = run("train_vit_cifar10.py", *TINY, "--output-dir", tmp_path / "run", *args)
    assert (result.code, result.out) == (code, "")
    assert re.fullmatch(rf"error: .*{named}.*\n", result.err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run("train_vit_cifar10.py", *SHORT, "--output-dir", tmp_path / "file" / "run")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"error: .*--output-dir.*\n", result.err)


def test_held_out_images_choose_the_epoch_and_the_test_images_are_looked_at_once(run, tmp_path):
    folder = tmp_path / "run"
    result = run("train_vit_cifar10.py", *SHORT, "--val-size", "200", "--output-dir", folder)
    assert (result.code, result.err) == (0, "")
    records = read_strict_json(folder / "training_history.json")
    assert {"val_loss", "val_acc"} < records.keys()
    assert 200 * records["val_acc"][0] / 100 == pytest.approx(round(200 * records["val_acc"][0] / 100))
    acc = records["val_acc"][0]
    assert f"    Val Loss:   {records['val_loss'][0]:.4f} | Val Acc:   {acc:5.2f}%\n" in result.out
    [test_acc] = re.findall(r"^Test Loss.*: \d+\.\d{4} \| Test Acc: +(\d+\.\d\d)%$", result.out, re.MULTILINE)
    logits, labels = timm_logits(folder / "best_model.pth")
    correct = (logits.argmax(dim=1) == labels).sum().item()
    assert float(test_acc) == pytest.approx(100 * correct / 360, abs=0.006)
    assert load(folder / "best_model.pth")["split"] == "val"
    found = read_strict_json(folder / "test_result.json")
    assert (f"{found['test_acc']:.2f}", found["epoch"]) == (test_acc, 1)


def test_the_test_result_says_what_the_run_cost_over_all_its_starts(run, tmp_path):
    command = ["train_vit_cifar10.py", *SHORT, "--val-size", "200", "--output-dir", tmp_path]
    assert run(*command).code == 0
    first = read_strict_json(tmp_path / "test_result.json")
    num_images = read_strict_json(tmp_path / "config.json")["data"]["num_train_images"]
    assert first["images_seen"] == num_images
    [startup] = first["startup_seconds"]
    assert startup > 0
    assert run(*command, "--resume", "--extend", "--num-epochs", "2").code == 0
    longer = read_strict_json(tmp_path / "test_result.json")
    assert (longer["images_seen"], longer["steps"]) == (2 * num_images, 2 * first["steps"])
    assert longer["startup_seconds"][:-1] == [startup]
    assert longer["seconds"] == sum(read_strict_json(tmp_path / "training_history.json")["epoch_time"])
    assert run(*command, "--resume", "--num-epochs", "2").code == 0  # nothing is left to train
    assert read_strict_json(tmp_path / "test_result.json") == longer


def test_resnet_trains_in_the_same_loop_and_the_evaluator_takes_its_checkpoint(run, tmp_path):
    flags = ["--dataset=digits", "--img-size=9", "--max-train-images=65", "--num-epochs=1", "--warmup-epochs=0"]
    result = run("train_resnet_cifar10.py", *flags, "--output-dir", tmp_path / "run", "--device=cpu")
    assert (result.code, result.err) == (0, "")
    assert "11,173,962 parameters" in result.out
    result = run("evaluate_vit.py", "--device=cpu", "--checkpoint", tmp_path / "run" / "best_model.pth")
    assert (result.code, result.err) == (0, "")
    evaluation = read_strict_json(tmp_path / "run" / "evaluation" / "evaluation.json")
    assert evaluation["model_name"] == "ResNet18"
    assert [evaluation["accuracy"]] == read_strict_json(tmp_path / "run" / "training_history.json")["test_acc"]


def train_on_image_folder(run: Script, folder: Path, class_names: list[str]) -> list[str]:
    """Train on three random images of each class, in folder / "run". Returns the flags."""
    random = np.random.default_rng(0)
    for i in range(3):
        for place in (folder / "data" / split / name for split in ("train", "test") for name in class_names):
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(place / f"{i}.png")
    flags = [*SHORT, "--dataset=image-folder", "--img-size=8", "--max-train-images=0"]
    flags += [f"--data-dir={folder / 'data'}", f"--output-dir={folder / 'run'}"]
    assert run("train_vit_cifar10.py", *flags).code == 0
    return flags


def train_and_evaluate_image_folder(run: Script, folder: Path, class_names: list[str]) -> None:
    """Do the same, and evaluate the run."""
    train_on_image_folder(run, folder, class_names)
    assert run("evaluate_vit.py", "--device=cpu", "--checkpoint", folder / "run").code == 0
    assert load(folder / "run" / "best_model.pth")["model_args"]["num_classes"] == len(class_names)


def test_the_report_shows_class_names_as_they_are_and_runs_nothing_of_them(run, tmp_path):
    names = ["<img src=x onerror=alert(1)>", '"Tom" & <b>Jerry']
    train_and_evaluate_image_folder(run, tmp_path, names)
    page = Page(tmp_path / "run" / "evaluation" / "report.html")
    assert all(name in page.text for name in names)
    assert "x" not in page.addresses
    assert not [name for name in page.attributes if name.startswith("on")]


def test_class_names_need_not_be_formulas(run, tmp_path):
    train_and_evaluate_image_folder(run, tmp_path, ["$1_$2", "_a^b\\c{"])  # matplotlib reads $...$ as one


def test_a_console_without_a_check_mark_does_not_end_the_run(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # a file that Windows prints to
    monkeypatch.setattr(sys, "stdout", out)
    figures = dict.fromkeys(["train_loss", "train_acc", "test_loss", "test_acc", "lr", "epoch_time"], 1.0)
    with errors.exit_codes():
        console.print_summary(figures, "test", new_best=True)
    out.seek(0)
    assert "New best accuracy! Saved checkpoint." in out.read()


@pytest.mark.parametrize("split", ["train", "test"])
def test_resuming_on_other_images_is_refused(run, tmp_path, split):
    flags = train_on_image_folder(run, tmp_path, ["a", "b"])
    before = files_of(tmp_path / "run")
    shutil.copy(tmp_path / "data" / "train" / "a" / "0.png", tmp_path / "data" / split / "b" / "new.png")
    result = run("train_vit_cifar10.py", *flags, "--resume")
    assert (result.code, result.out) == (2, "")
    assert "data is not what it was" in result.err
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize(("same", "chosen_on"), [(True, "test"), (False, None)])
def test_only_the_images_it_was_chosen_on_are_said_to_have_chosen_it(run, tmp_path, same, chosen_on):
    train_on_image_folder(run, tmp_path, ["a", "b"])
    folder = tmp_path / "data"
    if not same:
        folder = folder.rename(tmp_path / "other")
    best = tmp_path / "run" / "best_model.pth"
    assert run("evaluate_vit.py", "--device=cpu", "--checkpoint", best, "--data-dir", folder).code == 0
    assert read_strict_json(tmp_path / "run" / "evaluation" / "evaluation.json")["chosen_on"] == chosen_on
