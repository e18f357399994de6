"""The folder that export_vit.py --format safetensors writes, read again: nothing in it is executed.

model.safetensors holds the weights. config.json has a part for timm, and what else a checkpoint holds as `checkpoint`.
"""

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
import torch

from config_vit_cifar10 import DatasetName
from training.errors import RunError, first_line
from training.history import is_history, is_number

WEIGHTS = "model.safetensors"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of the weights in it
SAVED_WITH_WEIGHTS = (  # what config.json keeps of the checkpoint
    *("model_name", "model_args", "config", "data", "flops", "split", "precision", "epoch", "history", "chosen_on"),
    "extended_from",
)


KINDS: dict[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a whole number": lambda value: type(value) is int,
    "float32 or bfloat16": lambda value: value in ("float32", "bfloat16"),
    "the name of a dataset": lambda value: value in get_args(DatasetName),
    "an object": lambda value: isinstance(value, dict),
    "a list of names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "a list of whole numbers": lambda value: isinstance(value, list) and all(type(number) is int for number in value),
    "three numbers": lambda value: isinstance(value, list) and len(value) == 3 and all(map(is_number, value)),
    "equally long lists of numbers": is_history,
}
NEEDED = {  # of config.json's `checkpoint`, by kind
    "a text": ("model_name", "config.data_dir", "config.data_url", "config.init_from"),
    "a whole number": (
        *("model_args.img_size", "model_args.num_classes", "config.img_size", "config.val_size", "config.num_epochs"),
        *("epoch", "steps_since_epoch", "data.num_train_images"),
    ),
    "float32 or bfloat16": ("precision",),
    "the name of a dataset": ("config.dataset",),
    "an object": ("machine",),
    "a list of names": ("data.class_names",),
    "a list of whole numbers": ("extended_from",),
    "three numbers": ("data.mean", "data.std"),
    "equally long lists of numbers": ("history",),
}
# an old checkpoint may have none of these
OPTIONAL = ("config.init_from", "data.num_train_images", "steps_since_epoch", "history", "extended_from")


def read_exported(path: Path) -> dict[str, Any]:
    """A checkpoint's content, from model.safetensors and the config.json beside it.

    RunError names the file that is missing or damaged, and what is wrong in it.
    """
    about, advice = path.with_name("config.json"), "(other weights than export_vit.py's: train with --init-from)"
    try:
        content = json.loads(about.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"can't read {about} beside {path.name}: {error.strerror} {advice}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{about} is damaged: {first_line(error)}") from None
    if not isinstance(content, dict) or not isinstance(saved := content.get("checkpoint"), dict):
        raise RunError(f"{about} was not written by export_vit.py: it has no object `checkpoint` {advice}")
    for kind, names in NEEDED.items():
        for name in names:
            value = reduce(lambda part, key: part.get(key) if isinstance(part, dict) else None, name.split("."), saved)
            if not KINDS[kind](value) and not (value is None and name in OPTIONAL):
                raise RunError(f"{about} is damaged: {name} must be {kind}")
    sizes = (saved["model_args"]["num_classes"], saved["model_args"]["img_size"])
    if sizes != (len(saved["data"]["class_names"]), saved["config"]["img_size"]):
        raise RunError(f"{about} is damaged: its model has other classes, or another image size, than its data")
    try:
        return {**saved, "model": safetensors.torch.load_file(path)}
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None
