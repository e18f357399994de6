"""What a run was made with, and whether a resumed run is still the same."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training import console, distributed
from training.data import Dataset
from training.data.loader import ImageLoader
from training.errors import UsageError
from training.pretrained import freeze_backbone

# Settings that a resumed run may give otherwise. Images and precision are compared as they turn out (refuse_other_run).
FREE_ON_RESUME = [
    "preset", "output_dir", "data_dir", "data_url", "cache", "num_workers", "device", "precision", "compile",
    "tensorboard", "save_minutes", "save_every",
]  # fmt: skip

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}  # what config.json calls it, and the flag
MARCH = "TORCHINDUCTOR_CPP_MARCH"  # which processor torch.compile is told to compile for

OTHER_RUN = "--resume goes on with the settings that the run began with"


def describe_run(
    config: Any, create_model: Callable[..., nn.Module], dataset: Dataset, train_loader: ImageLoader, split: str,
    dtype: torch.dtype,
) -> dict[str, Any]:  # fmt: skip
    """What a checkpoint holds beside the weights to rebuild and evaluate the model, in plain values.

    A collective call: UsageError where the ranks have read different images.
    """
    data = {
        "class_names": dataset.class_names,
        "num_train_images": len(train_loader.images),
        "num_test_images": len(dataset.test_images),
        **train_loader.stats,
    }
    if any(other != data for other in distributed.gather(data)):
        raise UsageError(
            "the processes read different images: give all machines the same folder, and the same version of Pillow"
        )
    model_args = {**config.model_args, "num_classes": len(dataset.class_names)}
    flops = count_flops(create_model, config.img_size, getattr(config, "freeze_backbone", False), **model_args)
    return {
        "model_name": create_model.__name__,
        "model_args": model_args,
        "num_parameters": count_parameters(create_model, **model_args),
        "flops": flops,  # of an image, forward and backward
        "work": flops * len(train_loader.images) * config.full_epochs(config.num_epochs),
        "config": config.to_dict(),
        "extended_from": [],  # numbers of epochs that the schedule had before --extend
        "machines_before": [],  # where the run began and went on, if not always on the same machine and threads
        "data": data,
        "split": split,
        "precision": str(dtype).removeprefix("torch."),
    }


def count_parameters(create_model: Callable[..., nn.Module], /, **model_args: Any) -> int:
    """Numbers in the model's parameters, frozen or not, counted without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(**model_args).parameters())


def count_flops(
    create_model: Callable[..., nn.Module], img_size: int, frozen: bool = False, /, **model_args: Any
) -> int:
    """Floating-point operations of one image's forward and backward pass, counted by torch without computing them.

    With `frozen`, the backward pass is that of the head alone.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = create_model(**model_args).eval()
        if frozen:
            freeze_backbone(model)
        model(torch.empty(1, 3, img_size, img_size)).sum().backward()
    return counter.get_total_flops()


def resumed_config(config: Any, saved: dict[str, Any], extend: bool) -> Any:
    """The config with the saved run's warmup, where it leaves that open, and an extended run's small images."""
    before = saved["config"]
    if extend or saved["extended_from"]:  # the epochs that are added have full images
        with suppress(ValueError):  # another size, that has no small images: refused later
            lengths = {name: before.get(name, 0) for name in ("num_epochs", "small_images_share")}
            small = replace(config, warmup_epochs=0, **lengths).small_epochs
            longer = lengths["num_epochs"] != config.num_epochs
            share = small / config.num_epochs if longer else lengths["small_images_share"]
            config = replace(config, small_images_share=share)
    if config.warmup_epochs == "auto" and before["warmup_epochs"] <= config.num_epochs:
        config = replace(config, warmup_epochs=before["warmup_epochs"])  # its rule might make another of it
    return config


def extends(config: Any, saved: dict[str, Any], extend: bool) -> bool:
    """Whether `extend` makes the run longer, and is not the command of before that is given again."""
    return extend and (not saved["extended_from"] or saved["config"]["num_epochs"] != config.num_epochs)


def refuse_other_settings(saved: dict[str, Any], config: Any, extend: bool) -> None:
    """UsageError that lists the settings in which a resumed run would differ from the run that was saved.

    A setting that the saved run does not know had its default: it was added since.
    """
    before, now = {**type(config)().to_dict(), **saved["config"]}, config.to_dict()
    if extend and now["num_epochs"] <= before["num_epochs"]:
        raise UsageError(f"--extend needs more than the {before['num_epochs']} epochs of the run: give --num-epochs")
    free = FREE_ON_RESUME + (["num_epochs", "small_images_share"] if extend else [])
    changed = [name for name in now if name not in free and before[name] != now[name]]
    if saved["extended_from"] and "num_epochs" in changed:  # its small images are another share of the new length
        changed = [name for name in changed if name != "small_images_share"]
    command = shlex.join(without_start(saved["machine"]["command"]))
    advice = f"Give those of before (its command: {command}), or start a new run in another --output-dir"
    if changed == ["num_epochs"] and now["num_epochs"] > before["num_epochs"]:
        advice = (
            "A run of more epochs has other learning rates: start it anew, or give --extend to go on from here with "
            "the rest of the longer schedule"
        )
    if changed:
        other = "; ".join(f"{name} was {before[name]}, is {now[name]}" for name in changed)
        raise UsageError(f"{OTHER_RUN}: {other}. {advice}")


def refuse_other_run(saved: dict[str, Any], metadata: dict[str, Any], create_model: Callable[..., nn.Module]) -> None:
    """UsageError where a resumed run of the same settings has another model, other data or another arithmetic.

    A model argument that the saved run does not know had its default: it was added since.
    """
    arguments = {name: argument.default for name, argument in signature(create_model).parameters.items()}
    data = {**metadata["data"], **saved["data"]}  # early runs did not save num_test_images
    saved = {**saved, "model_args": {**arguments, **saved["model_args"]}, "data": data}
    metadata = {**metadata, "model_args": {**arguments, **metadata["model_args"]}}
    names = ("model_name", "model_args", "data", "split", "precision")
    other = [f"{name} is not what it was" for name in names if saved[name] != metadata[name]]
    if saved["precision"] != metadata["precision"]:
        short = PRECISIONS[saved["precision"]]
        other[-1] = f"precision was {short} and would be another here: give --precision {short}"
    if other:
        raise UsageError(f"{OTHER_RUN}: {'; '.join(other)}")


def warn_of_other_machine(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Print a warning where the last bits may differ from here on. Returns whether it did."""
    names = ["device", "cpu", "threads", "world_size", "compile"]
    if before["compile"] and now["compile"] and MARCH in before:  # early runs did not save it
        names.append(MARCH)
    other = [f"{name} {before[name]} before, {now[name]} now" for name in names if before[name] != now[name]]
    if before["versions"]["torch"] != now["versions"]["torch"]:
        other.append(f"torch {before['versions']['torch']} before, {now['versions']['torch']} now")
    if other:
        console.print_warning(f"the bits may differ from those of an uninterrupted run: {'; '.join(other)}")
    return bool(other)


def describe_machine(device: torch.device, compiled: bool) -> dict[str, Any]:
    """Where, with what and how a run was made: versions, threads, git revision, command line."""
    folder = str(Path(__file__).parent)
    describe = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    versions = {name: version(name) for name in ("torchvision", "numpy", "scikit-learn")}
    return {
        "command": [Path(sys.executable).name, *sys.argv],
        "git_revision": revision,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), **versions},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": distributed.world_size(),
        "launch": distributed.launch_id(),
        "compile": compiled,
        MARCH: os.environ.get(MARCH),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def resume_command(argv: list[str]) -> str:
    """The command that goes on with the run that `argv` began."""
    if distributed.under_torchrun():
        return f"the same torchrun command with --resume{' in place of --overwrite' if '--overwrite' in argv else ''}"
    return python_command([*without_start(argv), "--resume"])


def without_start(argv: list[str]) -> list[str]:
    """The command line without the flags that say how a run starts."""
    return [word for word in argv if word not in ("--resume", "--overwrite", "--extend")]


def python_command(argv: list[str]) -> str:
    """The command that has this Python run a script with its arguments."""
    name = Path(sys.executable).name
    python = name if shutil.which(name) == sys.executable else sys.executable  # with no virtual environment activated
    return shlex.join([python, *argv])
