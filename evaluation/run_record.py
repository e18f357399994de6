"""What the JSON files in a run's folder say about the run."""

import os
from dataclasses import MISSING, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from config_vit_cifar10 import TrainConfig, ViTConfig
from training import history
from training.console import counted
from training.errors import RunError
from training.provenance import FREE_ON_RESUME, MARCH

NOT_COMPARED = [*FREE_ON_RESUME, "seed"]  # settings that don't put a run into another row


@dataclass(frozen=True)
class RunRecord:
    """A run with at least one finished epoch: what the JSON files in its folder say. Accuracies are in percent."""

    name: str  # the folder, as it was given
    about: dict[str, Any]  # config.json
    history: history.History
    test_result: dict[str, Any]  # test_result.json; empty without
    evaluation: dict[str, Any]  # evaluation.json; empty without
    predictions: Path  # predictions.csv beside evaluation.json; may be missing

    @property
    def model_name(self) -> str:
        return self.about["model_name"]

    @property
    def config(self) -> dict[str, Any]:
        """All settings. One that is younger than the run has its default."""
        kind = ViTConfig if self.model_name == "VisionTransformer" else TrainConfig
        defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
        return {**defaults, **self.about["config"]}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the result depends on, the seed left out; precision as "auto" was decided."""
        settings = {name: value for name, value in self.config.items() if name not in NOT_COMPARED}
        extended = ", ".join(map(str, self.about.get("extended_from", [])))
        return settings | {"precision": self.about.get("precision"), "extended_from": extended}

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def num_parameters(self) -> int | None:
        return self.about.get("num_parameters") or self.evaluation.get("num_parameters")

    @property
    def flops(self) -> int | None:
        """Floating-point operations of an image, forward and backward."""
        return self.about.get("flops")

    @property
    def epochs_done(self) -> int:
        return len(self.history["epoch"])

    @property
    def finished(self) -> bool:
        return self.epochs_done == self.config["num_epochs"]

    @property
    def num_train_images(self) -> int | None:
        return self.about["data"].get("num_train_images")

    @property
    def num_test_images(self) -> int | None:
        return self.about["data"].get("num_test_images") or self.own_evaluation.get("num_images")

    @property
    def images_seen(self) -> int | None:
        """Training images, each counted once an epoch, of the finished epochs."""
        return self.num_train_images and self.epochs_done * self.num_train_images

    @property
    def seconds(self) -> float:
        return sum(self.history["epoch_time"])

    @property
    def minutes(self) -> list[float]:
        """Minutes from the first step to the end of each epoch."""
        return [seconds / 60 for seconds in accumulate(self.history["epoch_time"])]

    @property
    def machine(self) -> tuple[Any, ...] | None:
        """What its time depends on beside its settings; None where it isn't known, or did not stay the same."""
        if self.about.get("machines_before") or not self.about.get("device"):
            return None
        return tuple(self.about.get(name) for name in ("device", "cpu", "threads", "world_size", "compile", MARCH))

    @property
    def threads(self) -> str:
        """What the run had from its beginning to its end: "2 threads (AMD EPYC)". RunError where it isn't known."""
        device, cpu, threads, processes = (self.about.get(name) for name in ("device", "cpu", "threads", "world_size"))
        if self.about.get("machines_before"):
            raise RunError(f"{self.name} went on with other threads or on another machine: its minutes don't add up")
        if not (device and cpu and threads and processes):
            raise RunError(f"{self.name}: config.json does not say on which processor and how many threads the run was")
        if device != "cpu":
            raise RunError(f"{self.name} ran on {device}: its minutes are not those of CPU cores")
        return f"{counted(threads * processes, 'thread')} ({cpu})"

    @property
    def images_per_second(self) -> float:
        return history.mean_speed(self.history)

    @property
    def split(self) -> str:
        """The images that chose the best epoch: "test" or "val"."""
        return history.monitored_split(self.history)

    @property
    def accuracies(self) -> list[float]:
        """On the monitored split, of each epoch."""
        return self.history[f"{self.split}_acc"]

    @property
    def best_epoch(self) -> int:
        return int(self.history["epoch"][self.accuracies.index(max(self.accuracies))])

    @property
    def own_evaluation(self) -> dict[str, Any]:
        """evaluation.json, if it is of this model's best epoch and its own dataset's test images; else empty."""
        expected = {
            "model_name": self.model_name,
            "chosen_on": self.split,
            "epoch": self.best_epoch,
            "dataset": self.config["dataset"],
            "split": "test",
        }
        return self.evaluation if expected.items() <= self.evaluation.items() else {}

    @property
    def test_accuracy(self) -> float | None:
        """Of the best epoch, on the test images; None where it is not known."""
        if self.split == "test":
            return max(self.accuracies)
        if self.finished and self.test_result.get("epoch", self.best_epoch) == self.best_epoch:  # early runs lack it
            return self.test_result.get("test_acc", self.own_evaluation.get("accuracy"))
        return self.own_evaluation.get("accuracy")


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder. RunError where it holds no run with a finished epoch, or a file of it is damaged."""
    path = folder / "training_history.json"
    if history.read_object(path).get("epoch") == []:
        raise RunError(f"{folder} holds a run without a finished epoch")
    records = history.read(path)
    if records is None:
        raise RunError(f"{folder} holds no run: training_history.json is missing or damaged")
    if any(value < 0 for values in records.values() for value in values):
        raise RunError(f"{path} is damaged: a number is negative")
    about = history.read_object(folder / "config.json")
    try:
        settings, class_names = about["config"], about["data"]["class_names"]
        plain = all(isinstance(value, str | int | float) for value in settings.values())
        numbers = type(settings["num_epochs"]) is int and type(settings["seed"]) is int
        texts = [about["model_name"], settings["dataset"], *class_names]
        whole = plain and numbers and all(isinstance(text, str) for text in texts)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise RunError(f"{folder / 'config.json'} is missing or damaged")
    place = folder / "evaluation" if os.path.exists(folder / "evaluation" / "evaluation.json") else folder
    evaluation = history.read_object(place / "evaluation.json")
    test_result = history.read_object(folder / "test_result.json")
    return RunRecord(folder.as_posix(), about, records, test_result, evaluation, place / "predictions.csv")
