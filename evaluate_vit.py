"""Evaluate a trained model on the test images: figures, a table of the classes, evaluation.json and report.html.

    python evaluate_vit.py                                    # the best model of the default run
    python evaluate_vit.py --checkpoint checkpoints/demo      # of another run; or name one of its .pth files
    python evaluate_vit.py --compare checkpoints/resnet18_cifar10             # and a second model, side by side
    python evaluate_vit.py --flip                             # also test-time augmentation by mirror images
    python evaluate_vit.py --corruptions                      # and under noise, blur, brightness, JPEG, shift
    python evaluate_vit.py --skip attention patch_filters     # without these figures
    python evaluate_vit.py --images cat.jpg dog.png           # classify your own pictures: top classes, attention

The checkpoint holds all settings of the model. ViT-Tiny on CIFAR-10's 10,000 test images takes about a minute on two
cores.
"""

if __name__ == "__main__":  # Ctrl-C while torch is being imported ends the script without a traceback
    from training.errors import end_at_interrupt

    end_at_interrupt()

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from config_vit_cifar10 import DatasetName
from evaluation import metrics, predictions
from evaluation.classify import classify_files
from evaluation.console import print_evaluation
from evaluation.corruptions import evaluate_corrupted
from evaluation.figures import FIGURES, Results, draw_figures
from evaluation.trained import TrainedModel
from resnet import ResNet18
from training import history
from training.cli import parse
from training.data import Dataset, load_dataset
from training.device import select_device
from training.errors import RunError, UsageError, exit_codes
from training.files import create_folder
from vit import VisionTransformer

MODELS = {model.__name__: model for model in (VisionTransformer, ResNet18)}


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, on what, and where to write the results."""

    checkpoint: str = "checkpoints/vit_tiny_cifar10/best_model.pth"
    """file of a run, the folder of a run for its best model, or a folder that export_vit.py wrote"""
    output_dir: str = ""
    """folder for the results; by default `evaluation` beside the checkpoint"""
    dataset: DatasetName | Literal[""] = ""
    """dataset of the test images; by default the one that the model was trained on"""
    data_dir: str = ""
    """folder of the dataset; by default the one that the model was trained on"""
    images: tuple[str, ...] | None = None
    """classify these pictures instead of the test images, and show where the model looks in them"""
    compare: str = ""
    """checkpoint of a second model, or the folder of its run, to compare with the first on the same images"""
    flip: tyro.conf.FlagCreatePairsOff[bool] = False
    """test-time augmentation: also the mean probabilities of each image and its mirror image, reported separately"""
    corruptions: tyro.conf.FlagCreatePairsOff[bool] = False
    """also evaluate under noise, blur, brightness, JPEG and shift, at three strengths each; fifteen more passes"""
    skip: Annotated[tuple[str, ...], tyro.conf.arg(help=f"figures to leave out, of: {', '.join(FIGURES)}")] = ()
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto takes a GPU if there is one"""

    def __post_init__(self):
        for name in self.skip:
            if name not in FIGURES:
                raise ValueError(f"skip must name figures ({', '.join(FIGURES)}), got {name!r}")
        if self.images == ():  # as from a pattern of a shell that nothing matches
            raise ValueError("images names no picture: leave it out to evaluate the test images")
        if self.images:
            for name in ("dataset", "data_dir", "compare", "flip", "corruptions", "skip"):
                if getattr(self, name):
                    flag = f"--{name.replace('_', '-')}"
                    raise ValueError(f"--images replaces the test images, so {flag} has no use: leave out {flag}")


def main(config: EvaluateConfig) -> None:
    """Evaluate a checkpoint and write evaluation.json, the figures and report.html."""
    device = select_device(config.device)
    trained = TrainedModel.load(config.checkpoint, MODELS, device)
    folder = Path(config.output_dir) if config.output_dir else trained.path.parent / "evaluation"
    if config.images:
        classify_files(trained, config.images, folder / "images")
        return
    refuse_folder_of_other_run(folder, trained.path)
    other = TrainedModel.load(config.compare, MODELS, device) if config.compare else None
    load = functools.cache(load_dataset)  # two models of one image size have the same images
    dataset, chosen_on = load_test_data(config, trained, trained, load)
    other_dataset, other_chosen_on = load_test_data(config, trained, other, load) if other else (dataset, None)
    if config.flip and not dataset.mirrorable:
        raise UsageError("--flip: the mirror images of this dataset would show something else; leave out --flip")
    if config.flip and not trained.saved["config"].get("horizontal_flip", True):
        print("note: this model was not trained on mirror images")
    fingerprint = predictions.fingerprint(dataset)
    if not config.output_dir:
        refuse_to_replace(folder, trained.path, fingerprint if config.dataset or config.data_dir else None)
    create_folder(folder)

    labels, logits = dataset.test_labels, trained.predict(dataset)
    name = config.dataset or trained.saved["config"]["dataset"]
    evaluation = {**trained.describe(), "dataset": name, "split": "test", "chosen_on": chosen_on}
    evaluation["test_images_sha256"] = fingerprint
    evaluation |= metrics.measure(logits, labels, trained.class_names)
    if config.flip:
        evaluation["flip"] = metrics.headline(trained.predict_with_flip(dataset, logits), labels)
    if config.corruptions:
        evaluation["corruptions"] = evaluate_corrupted(trained, dataset)
    other_logits = None
    if other:
        other_logits = other.predict(other_dataset)
        evaluation["comparison"] = {
            **other.describe(), "chosen_on": other_chosen_on,
            **metrics.measure(other_logits, labels, other.class_names),
            **metrics.compare(logits.argmax(dim=1) == labels, other_logits.argmax(dim=1) == labels),
        }  # fmt: skip
    print_evaluation(evaluation)
    (folder / "report.html").unlink(missing_ok=True)  # an older one, should this be interrupted
    predictions.write(folder / "predictions.csv", logits, labels)
    history.write_json(folder / "evaluation.json", evaluation)
    results = Results(evaluation, dataset, trained, logits, other, other_logits)
    left_out = draw_figures(folder, results, config.skip)
    from evaluation.report import write_report  # its import takes seconds: after what can fail

    write_report(folder / "report.html", results, left_out)
    for name, reason in left_out.items():
        if name not in config.skip:
            print(f"No {name}.png: {reason}.")
    print(f"\nReport: {folder / 'report.html'}")


def refuse_folder_of_other_run(folder: Path, checkpoint: Path) -> None:
    """UsageError where the evaluation would count as that of a run whose folder does not hold the checkpoint."""
    run = folder.parent if folder.name == "evaluation" else folder
    if (run / "training_history.json").exists() and run.resolve() != checkpoint.parent.resolve():
        raise UsageError(
            f"--output-dir {folder}: {run} holds a run, and {checkpoint} is not in its folder; name another folder"
        )


def refuse_to_replace(folder: Path, checkpoint: Path, fingerprint: str | None) -> None:
    """UsageError where the folder has the evaluation of another checkpoint, or of other images than asked for.

    The run's own images, without a fingerprint here, may have changed.
    """
    there = history.read_object(folder / "evaluation.json")
    if fingerprint and there.get("test_images_sha256", fingerprint) != fingerprint:
        raise UsageError(f"{folder} holds the evaluation of other images: name another folder by --output-dir")
    if (name := Path(str(there.get("checkpoint", checkpoint))).name) != checkpoint.name:
        raise UsageError(f"{folder} holds the evaluation of {name}: name another folder by --output-dir")


def load_test_data(
    config: EvaluateConfig, trained: TrainedModel, model: TrainedModel, load: Callable[..., Dataset]
) -> tuple[Dataset, str | None]:
    """The images to evaluate `model` on, by `load`, in its image size, and the split on which its epoch was chosen.

    The images are those that `config` names, by default those of the dataset that `trained` was trained on. The split
    is None if it is unknown or the images are not from the dataset that `model` was trained on. RunError if the
    dataset has other classes than the model.
    """
    settings, own = trained.saved["config"], model.saved["config"]
    name = config.dataset or settings["dataset"]
    same = name == settings["dataset"]
    data_dir = config.data_dir or (settings["data_dir"] if same else "data")
    data_url = settings["data_url"] if same else ""
    if name == "image-folder" and not config.data_dir and not Path(data_dir).is_dir():
        raise RunError(
            f"{trained.path} learned from the pictures in {data_dir}, which is no folder here: give --data-dir"
        )
    dataset = load(name, data_dir, model.img_size, data_url, settings.get("cache", True))
    if dataset.class_names != model.class_names:
        raise RunError(
            f"{model.path} knows the classes {shorten(model.class_names)}; {name} has {shorten(dataset.class_names)}"
        )
    trained_on_it = name == own["dataset"]
    if name == "image-folder":  # another folder holds other images
        trained_on_it = trained_on_it and Path(data_dir).resolve() == Path(own["data_dir"]).resolve()
    return dataset, model.saved.get("chosen_on") if trained_on_it else None


def shorten(names: list[str]) -> str:
    """The names, at most 20 of them."""
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"


if __name__ == "__main__":
    with exit_codes():
        main(parse(EvaluateConfig, __doc__ or ""))
