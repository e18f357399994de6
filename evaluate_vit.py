"""Show what a trained model does on the test images: figures, a table of the classes, evaluation.json and report.html.

    python evaluate_vit.py                                    # the best model of the default run
    python evaluate_vit.py --checkpoint checkpoints/demo      # of another run; or name one of its .pth files
    python evaluate_vit.py --compare checkpoints/resnet18_cifar10             # a second model, side by side
    python evaluate_vit.py --flip                             # also: each image and its mirror image, averaged
    python evaluate_vit.py --corruptions                      # also: noise, blur, brightness, JPEG, shift (15 passes)
    python evaluate_vit.py --skip attention patch_filters     # without these figures
    python evaluate_vit.py --images cat.jpg dog.png           # pictures of your own: five likeliest classes, attention

The model is rebuilt from the checkpoint's own settings; nothing has to be said again. ViT-Tiny and
CIFAR-10's 10,000 test images take about a minute on two cores.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from evaluation import attention, metrics
from evaluation.corruptions import CORRUPTIONS, corrupt
from evaluation.figures import FIGURES, Results, draw_figures
from evaluation.trained import Trained
from resnet import ResNet18
from training import checkpoint, history
from training.cli import parse
from training.data import Dataset, load_dataset
from training.data.image_folder import read_image
from training.device import select_device
from training.errors import RunError, UsageError, exit_codes, first_line
from training.files import create_folder
from vit import VisionTransformer

MODELS = {model.__name__: model for model in (VisionTransformer, ResNet18)}
MAX_ROWS = 100  # classes in the terminal's table; the report has them all


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, on what, and where to write it."""

    checkpoint: str = "checkpoints/vit_tiny_cifar10/best_model.pth"
    """file that train_vit_cifar10.py or train_resnet_cifar10.py wrote, or the folder of a run for its best model"""
    output_dir: str = ""
    """folder for what is written; by default `evaluation` beside the checkpoint"""
    dataset: Literal["", "cifar10", "cifar100", "digits", "image-folder"] = ""
    """whose test images; by default the dataset that the checkpoint was trained on"""
    data_dir: str = ""
    """folder of the dataset; by default the one that the checkpoint was trained on"""
    images: tuple[str, ...] = ()
    """classify these pictures in place of the test images, and draw what the model looks at in them"""
    compare: str = ""
    """folder of a second run, or one of its checkpoints, to hold beside the first on the same images"""
    flip: tyro.conf.FlagCreatePairsOff[bool] = False
    """also average the probabilities of each image and its mirror image; reported apart, it takes a second pass"""
    corruptions: tyro.conf.FlagCreatePairsOff[bool] = False
    """also evaluate under noise, blur, brightness, JPEG and shift at three strengths each; fifteen more passes"""
    skip: tuple[str, ...] = ()
    """figures to leave out: training_curves, confusion_matrix, per_class_accuracy, reliability, confidence,
    predictions, mistakes, attention, position_embeddings, patch_filters, corruptions, comparison_curves,
    comparison_classes or comparison_images"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute; auto takes a GPU if there is one"""

    def __post_init__(self):
        for name in self.skip:
            if name not in FIGURES:
                raise ValueError(f"skip must name figures ({', '.join(FIGURES)}), got {name!r}")
        unused = [
            name for name in ("dataset", "data_dir", "compare", "flip", "corruptions", "skip") if getattr(self, name)
        ]
        if self.images and unused:
            raise ValueError(
                f"images are classified in place of the test images: leave out --{unused[0].replace('_', '-')}"
            )


def main(config: EvaluateConfig) -> None:
    """From the checkpoint to the report."""
    device = select_device(config.device)
    subject = open_checkpoint(config.checkpoint, device)
    folder = Path(config.output_dir) if config.output_dir else subject.path.parent / "evaluation"
    if config.images:
        classify_files(subject, config.images, folder / "images")
        return
    other = open_checkpoint(config.compare, device) if config.compare else None
    dataset, trained_on_it = load_test_data(config, subject, subject)
    if config.flip and not dataset.mirrorable:
        raise UsageError("--flip: in the mirror these images would be others, or none; leave it out")
    other_dataset, other_trained_on_it = load_test_data(config, subject, other) if other else (dataset, False)
    create_folder(folder)

    labels, logits = dataset.test_labels, subject.predict(dataset)
    evaluation = {
        **subject.describe(),
        "dataset": config.dataset or subject.saved["config"]["dataset"],
        "split": "test",
        "chosen_on": subject.saved.get("chosen_on") if trained_on_it else None,
        **metrics.measure(logits, labels, subject.class_names),
    }
    if config.flip:
        evaluation["flip"] = evaluate_flipped(subject, dataset, logits)
    if config.corruptions:
        evaluation["corruptions"] = evaluate_corrupted(subject, dataset)
    other_logits = other.predict(other_dataset) if other else None
    if other and other_logits is not None:
        evaluation["comparison"] = {
            **other.describe(),
            "chosen_on": other.saved.get("chosen_on") if other_trained_on_it else None,
            **metrics.measure(other_logits, labels, other.class_names),
            **metrics.compare(logits.argmax(dim=1), other_logits.argmax(dim=1), labels),
        }
    print_table(evaluation)
    history.write_json(folder / "evaluation.json", evaluation)
    results = Results(evaluation, dataset, subject, logits, other, other_logits)
    left_out = draw_figures(folder, results, config.skip)
    from evaluation.report import write_report  # reads the figures just drawn

    write_report(folder / "report.html", results, left_out)
    for name, reason in left_out.items():
        if name not in config.skip:
            print(f"No {name}.png: {reason}.")
    print(f"\nReport: {folder / 'report.html'}")


def open_checkpoint(name: str, device: torch.device) -> Trained:
    """The model of a checkpoint file, or of the best one in a run's folder."""
    path = Path(name)
    if path.is_dir():
        path = path / "best_model.pth"
    saved = checkpoint.load(path)
    return Trained(path, saved, rebuild_model(saved, path).to(device), device)


def rebuild_model(saved: dict[str, Any], path: Path) -> nn.Module:
    """The model that a checkpoint describes, with its weights."""
    try:
        model = MODELS[saved["model_name"]](**saved["model_args"])
        model.load_state_dict(saved["model"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{path} holds no model that can be rebuilt: {first_line(error)}") from None
    return model.eval()


def load_test_data(config: EvaluateConfig, subject: Trained, trained: Trained) -> tuple[Dataset, bool]:
    """The images to evaluate on, in the size that `trained` takes, and whether they are of the data it was trained on.

    They are what `config` says, or else what `subject` was trained on. RunError where their classes are others.
    """
    settings = subject.saved["config"]
    name = config.dataset or settings["dataset"]
    same = name == settings["dataset"]
    data_dir = config.data_dir or (settings["data_dir"] if same else "data")
    data_url = settings["data_url"] if same else ""
    dataset = load_dataset(name, data_dir, trained.img_size, data_url, settings.get("cache", True))
    if dataset.class_names != trained.class_names:
        raise RunError(
            f"{trained.path} knows the classes {few(trained.class_names)}; {name} has {few(dataset.class_names)}"
        )
    own = trained.saved["config"]
    its_own = name == own["dataset"]
    if name == "image-folder":  # another folder holds other images
        its_own = its_own and Path(data_dir).resolve() == Path(own["data_dir"]).resolve()
    return dataset, its_own


def few(names: list[str]) -> str:
    """The names, or the first of many."""
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"


def evaluate_flipped(subject: Trained, dataset: Dataset, logits: Tensor) -> dict[str, Any]:
    """The headline figures of the mean of the probabilities for each image and for its mirror image."""
    mirrored = subject.predict(replace(dataset, test_images=dataset.test_images.flip(-1)), "mirrored test")
    probabilities = (logits.double().softmax(dim=1) + mirrored.double().softmax(dim=1)) / 2
    return metrics.headline(probabilities.clamp(min=1e-300).log(), dataset.test_labels)


def evaluate_corrupted(subject: Trained, dataset: Dataset) -> dict[str, list[dict[str, float]]]:
    """Strength, accuracy (percent) and loss (nats) under each corruption, weakest first."""
    results: dict[str, list[dict[str, float]]] = {}
    for name, (_, strengths, _) in CORRUPTIONS.items():
        results[name] = []
        for strength in strengths:
            images = corrupt(dataset.test_images, name, strength)
            logits = subject.predict(replace(dataset, test_images=images), f"{name} {strength:g} test")
            figures = metrics.headline(logits, dataset.test_labels)
            results[name].append({"strength": strength, **{key: figures[key] for key in ("accuracy", "loss")}})
    return results


def print_table(evaluation: dict[str, Any]) -> None:
    """Overall and per-class accuracy, for the terminal."""
    rows = evaluation["per_class"]
    width = max(len("all images"), *(len(row["name"]) for row in rows))
    if len(rows) > MAX_ROWS:
        rows = sorted(rows, key=lambda row: row["accuracy"])[:MAX_ROWS]
        print(f"\nThe {MAX_ROWS} classes of {len(evaluation['per_class']):,} with the lowest accuracy:")
    print(f"\n{'class':<{width}}  images  correct  accuracy\n{'-' * (width + 27)}")
    for row in rows:
        print(f"{row['name']:<{width}}  {row['num_images']:>6}  {row['num_correct']:>7}  {row['accuracy']:>7.2f}%")
    correct = sum(row["num_correct"] for row in evaluation["per_class"])
    print("-" * (width + 27))
    print(f"{'all images':<{width}}  {evaluation['num_images']:>6}  {correct:>7}  {evaluation['accuracy']:>7.2f}%")
    low, high = evaluation["accuracy_interval"]
    error = 100 * evaluation["calibration"]["expected_calibration_error"]
    print(
        f"\n95% interval {low:.2f} to {high:.2f}%; top 3 {evaluation['top3_accuracy']:.2f}%; "
        f"expected calibration error {error:.2f}%"
    )
    print(f"Test loss {evaluation['loss']:.4f}; {evaluation['model_name']} of epoch {evaluation['epoch']}.")
    if evaluation["chosen_on"] == "test":
        print("That epoch was chosen on these same images, which flatters it a little: --val-size avoids this.")
    print_options(evaluation)


def print_options(evaluation: dict[str, Any]) -> None:
    """What --flip, --corruptions and --compare found."""
    if flip := evaluation.get("flip"):
        print(f"Averaged with the mirror images: {flip['accuracy']:.2f}%, loss {flip['loss']:.4f}")
    for name, results in evaluation.get("corruptions", {}).items():
        accuracies = ", ".join(f"{row['accuracy']:.2f}% at {row['strength']:g}" for row in results)
        print(f"Under {name}: {accuracies}")
    if other := evaluation.get("comparison"):
        low, high = other["difference_interval"]
        print(
            f"{other['checkpoint']} ({other['model_name']}): {other['accuracy']:.2f}%. The first is ahead by "
            f"{other['difference']:+.2f} points (95% interval {low:+.2f} to {high:+.2f}); it alone gets "
            f"{other['num_only_this_right']} images right, the other alone {other['num_only_other_right']}"
        )


def classify_files(subject: Trained, files: tuple[str, ...], folder: Path) -> None:
    """Print the likeliest classes of picture files, of any size and mode; draw them, and what the model looks at."""
    names = subject.class_names
    images = torch.stack([read_image(file, subject.img_size) for file in files])
    create_folder(folder)
    from evaluation.attention_plots import plot_classified  # takes seconds to import: after what can fail

    looks = attention.has_attention(subject.model)
    top = subject(images).softmax(dim=1).topk(min(5, len(names)), dim=1)
    drawn: set[str] = set()
    for i, file in enumerate(files):
        guesses = [(names[c], p) for p, c in zip(top.values[i].tolist(), top.indices[i].tolist(), strict=True)]
        print(f"{file}: {', '.join(f'{name} {100 * chance:.1f}%' for name, chance in guesses)}")
        maps = None
        if looks:
            rollout, heads = attention.class_token_attention(subject.model, subject.normalize(images[i : i + 1]))
            maps = rollout[0], heads[0]
        stem = Path(file).stem[:40]  # 40 letters of four bytes: a file system takes 255
        stem = stem if stem not in drawn else f"{stem}_{i + 1}"
        drawn.add(stem)
        plot_classified(images[i], guesses, maps, folder / f"{stem}.png", Path(file).name)
    what = "what the model looks at in them" if looks else f"no attention, {subject.saved['model_name']} has none"
    print(f"Figures: {folder} ({what})")


if __name__ == "__main__":
    with exit_codes():
        main(parse(EvaluateConfig, __doc__ or ""))
