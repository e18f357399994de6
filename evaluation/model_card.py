"""The model card: README.md of an exported model, in the form of model hubs, from what the run knows of itself."""

from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.exported import DTYPES, WEIGHTS
from evaluation.trained import MOVED, TrainedModel
from training.console import counted, format_time
from training.history import mean_speed, monitored_split, read_object
from training.weight_files import FILES

RECIPE = (  # the settings that a training is told by, beside the model's own
    *("num_epochs", "batch_size", "optimizer", "learning_rate", "muon_learning_rate", "schedule", "weight_decay"),
    *("warmup_epochs", "clip_grad_norm", "crop_padding", "horizontal_flip", "auto_augment", "augment_policy"),
    "randaugment_magnitude",
    *("random_erasing", "mixup_alpha", "cutmix_alpha", "mix_probability", "label_smoothing", "small_images_share"),
    *("freeze_backbone", "layer_decay", "rel_pos_lr_scale", "seed"),
)
ZERO_COUNTS = ("seed", "rel_pos_lr_scale", "randaugment_magnitude")  # at 0 these are not off
DATASETS = {  # as people call them; of an image folder the card has the folder's own name
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "fashion-mnist": "Fashion-MNIST",
    "digits": "scikit-learn's handwritten digits", "image-folder": "a folder of pictures",
}  # fmt: skip
EVALUATION = "evaluation.json"  # in an exported folder: what evaluate_vit.py had measured before the export
SHOWN = {"num_images", "split", "dataset", "accuracy", "accuracy_interval", "loss"}  # of it, in the card


def model_card(trained: TrainedModel, dtype: str) -> str:
    """The card as Markdown; `dtype` is that of the weights."""
    saved, records = trained.saved, trained.records
    config, epoch = saved["config"], saved["epoch"]
    measured = records if not trained.steps_since_epoch else None  # no epoch's accuracy is that of these weights
    split = monitored_split(records) if records else ""
    weights = trained.model.state_dict().values()  # an export may be exported again: what was rounded stays so
    rounded = [name for name in ("bf16", "fp16") if all(torch.equal(x, x.to(DTYPES[name]).to(x)) for x in weights)]
    source, folder = Path(config.get("init_from") or ""), Path(config["data_dir"]).name
    named = config["dataset"] == "image-folder" and folder.strip(".")  # "." has no name
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("model_card.md.j2").render(
        config=config, data=saved["data"], names=trained.class_names, epoch=epoch, split=split,
        dtype=dtype, rounded="".join(rounded[:1]), datasets=DATASETS,
        source=name_of(source) if config.get("init_from") else "",
        dataset=f"the pictures in `{folder}`" if named else DATASETS[config["dataset"]],
        num_parameters=sum(parameter.numel() for parameter in trained.model.parameters()),
        model_args=[f"{name} {value}" for name, value in saved["model_args"].items()],
        recipe=recipe_of(config), extended_from=saved.get("extended_from") or [],
        evaluation=evaluation_of(trained), chosen_on=saved.get("chosen_on"), cost=cost_of(trained),
        accuracy=dict(zip(measured["epoch"], measured[f"{split}_acc"], strict=True)).get(epoch) if measured else None,
    )  # fmt: skip


def name_of(source: Path) -> str:
    """How the card calls the weights that the training began with: no path of this machine."""
    return (source.parent.name if source.name in FILES else source.name) or source.name or "other weights"


def evaluation_of(trained: TrainedModel) -> dict[str, Any] | None:
    """What evaluate_vit.py measured of this very file and epoch, if it did; an exported folder brings it along."""
    folder = trained.path.parent
    for path in (folder / EVALUATION, folder / "evaluation" / EVALUATION):
        content = read_object(path)
        brought_along = trained.path.name == WEIGHTS and path.parent == folder  # it names the file before the export
        same_file = brought_along or Path(str(content.get("checkpoint"))).name == trained.path.name
        same_weights = content.get("epoch") == trained.saved["epoch"] and not trained.steps_since_epoch
        if same_file and same_weights and content.keys() >= SHOWN:
            return content
    return None


def recipe_of(config: dict[str, Any]) -> list[str]:
    """The settings of the training that were not off."""
    without_use = {
        "horizontal_flip": config["dataset"] in ("digits", "svhn"),  # which are never mirrored
        "muon_learning_rate": config.get("optimizer") != "muon",
        "augment_policy": not config.get("auto_augment"),
        "randaugment_magnitude": not config.get("auto_augment") or config.get("augment_policy") != "randaugment",
        "mix_probability": not (config.get("mixup_alpha") or config.get("cutmix_alpha")),
        "layer_decay": config.get("layer_decay") == 1,
        "rel_pos_lr_scale": config.get("pos_embed") != "relative" or config.get("rel_pos_lr_scale") == 1,
    }
    on = [name for name in RECIPE if name in config and (config[name] or name in ZERO_COUNTS)]
    return [f"{name} {config[name]}" for name in on if not without_use.get(name)]


def cost_of(trained: TrainedModel) -> str:
    """The run's time, speed and processor; empty if its history is lost."""
    records, run = trained.records, trained.run
    if not records:
        return ""
    hardware = f" on {run['cpu'] if run.get('device') == 'cpu' else run.get('device')}" if "cpu" in run else ""
    if run.get("world_size", 1) != 1:
        hardware += f", {run['world_size']} processes"
    if trained.moved:
        hardware = f", {MOVED}"
    num_epochs, planned = len(records["epoch"]), trained.num_epochs
    number = f"{num_epochs} of {planned} epochs" if num_epochs < planned else counted(num_epochs, "epoch")
    time, speed = format_time(sum(records["epoch_time"])), mean_speed(records)
    return f"{number} in {time}{hardware}, {speed:,.0f} training images/s."
