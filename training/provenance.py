"""What a run was made with, and whether the one that goes on with it is still the same."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from training import console, distributed
from training.errors import UsageError

# What a resumed run may do otherwise than before: none of it changes what the model is or learns from.
FREE_ON_RESUME = (
    *("preset", "output_dir", "data_dir", "data_url", "cache"),
    *("num_workers", "device", "precision", "compile", "num_processes", "tensorboard", "save_minutes", "save_every"),
)


def refuse_other_run(saved: dict[str, Any], metadata: dict[str, Any], extend: bool) -> None:
    """UsageError that lists in what a resumed run would differ from the one it goes on with."""
    before, now = saved["config"], metadata["config"]
    if extend and now["num_epochs"] <= before["num_epochs"]:
        raise UsageError(f"--extend needs more than the {before['num_epochs']} epochs of the run: give --num-epochs")
    other = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in now.items()
        if name not in FREE_ON_RESUME and before.get(name) != value and not (extend and name == "num_epochs")
    ]
    if not other:
        names = ("model_name", "model_args", "data", "split", "precision")
        other = [f"{name} is not what it was" for name in names if saved[name] != metadata[name]]
        if saved["precision"] != metadata["precision"]:
            short = {"bfloat16": "bf16", "float32": "fp32"}[saved["precision"]]
            other[-1] = f"precision was {short} and would be another here: give --precision {short}"
    if other:
        advice = ""
        if now["num_epochs"] > before["num_epochs"] and not extend:
            advice = (
                ". A run of more epochs would have had another learning rate all along: start it anew, or give "
                "--extend to go on from here with the rest of the longer schedule"
            )
        raise UsageError(f"--resume goes on with what the run began with: {'; '.join(other)}{advice}")


def warn_of_other_machine(before: dict[str, Any], now: dict[str, Any]) -> None:
    """A loud line where the last bits may come out differently from here on."""
    names = ("device", "cpu", "threads", "world_size", "compile")
    other = [f"{name} {before[name]} before, {now[name]} now" for name in names if before[name] != now[name]]
    if before["versions"]["torch"] != now["versions"]["torch"]:
        other.append(f"torch {before['versions']['torch']} before, {now['versions']['torch']} now")
    if other:
        console.print_warning(f"the bits may differ from those of an uninterrupted run: {'; '.join(other)}")


def describe_machine(device: torch.device, compiled: bool) -> dict[str, Any]:
    """Where, with what and how a run was made: versions, threads, git revision, command line."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent.parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
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
        "launch": distributed.launch(),
        "compile": compiled,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def resume_command(argv: list[str]) -> str:
    """The command that goes on with the run that `argv` began."""
    others = [word for word in argv if word not in ("--resume", "--overwrite", "--extend")]
    name = Path(sys.executable).name
    python = name if shutil.which(name) == sys.executable else sys.executable  # with no virtual environment activated
    return shlex.join([python, *others, "--resume"])
