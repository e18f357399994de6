"""The command line: a flag for every field of a dataclass (tyro), presets, and an error of one line."""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import tyro

from training.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A training script's command line."""

    config: tyro.conf.OmitArgPrefixes[T]
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """go on from the newest good checkpoint in the output folder"""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """start a new run in a folder that holds one, which is moved aside"""
    extend: tyro.conf.FlagCreatePairsOff[bool] = False
    """with --resume and a larger --num-epochs: train on, with the rest of the longer schedule and full images"""


def parse_training_command(config_class: Any, description: str, args: Sequence[str] | None = None) -> Command[Any]:
    """Command line to config: a flag given beats the preset, and the preset beats the default. UsageError otherwise."""
    args = with_values(sys.argv[1:] if args is None else args)
    preset = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset.add_argument("--preset", choices=config_class.presets, default=config_class.preset)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            name = preset.parse_known_args(args)[0].preset
    except SystemExit:
        name = config_class.preset  # not a preset's name: the real parser below says so
    try:
        default = Command(config_class.from_preset(name))
    except (TypeError, ValueError) as error:  # a field that a preset misspells is a TypeError
        raise UsageError(f"{error} (in the config file)") from None
    command = parse(Command[config_class], description, args, default)
    if command.resume and command.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite starts anew: give one of them")
    if command.extend and not command.resume:
        raise UsageError("--extend makes a run longer that is there already: give it with --resume")
    if not command.resume:
        refuse_idle(command.config, default.config)
    return command


def refuse_idle(config: Any, default: Any) -> None:
    """UsageError for a flag that has no use without another one; a value that the preset has may be idle."""
    trained = not getattr(config, "freeze_backbone", False)
    uses = {
        "muon_learning_rate": (
            config.optimizer == "muon" and trained,
            "--optimizer muon" if trained else "a backbone that is trained",
        ),
        "randaugment_magnitude": (config.augment_policy == "randaugment", "--augment-policy randaugment"),
        "mix_probability": (config.mixup_alpha or config.cutmix_alpha, "--mixup-alpha or --cutmix-alpha"),
        "rel_pos_lr_scale": (
            getattr(config, "pos_embed", "") == "relative" and trained,
            "relative positions that are trained",
        ),
        "data_url": (config.dataset not in ("digits", "image-folder"), "a dataset that is downloaded"),
        "cache": (config.dataset == "image-folder", "--dataset image-folder"),
        "layer_decay": (trained, "a backbone that is trained"),
        "optimizer": (trained or config.optimizer != "muon", "a backbone that is trained"),
    }
    for name, (is_used, other) in uses.items():
        value = getattr(config, name, None)
        if not is_used and value != getattr(default, name, None):
            setting = f"no_{name}" if value is False else f"{name} {value}"
            raise UsageError(f"{setting} has no use without {other}")


def with_values(args: Sequence[str]) -> list[str]:
    """Give `--compile` and `--no-compile`, flags of a setting that may also be "auto", their value."""
    values = {"--compile": "--compile=True", "--no-compile": "--compile=False"}
    pairs = zip(args, [*args[1:], "--"], strict=False)
    return [values.get(word, word) if after.startswith("-") else word for word, after in pairs]


def parse(spec: Any, description: str, args: Sequence[str] | None = None, default: Any = None) -> Any:
    """Parse with tyro. What it, or the config itself, refuses is a UsageError of one line, not tyro's box."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(spec, description=description, args=args, **({"default": default} if default else {}))
    except ValueError as error:
        raise UsageError(str(error)) from None
    except SystemExit as stop:
        if stop.code == 0:  # --help
            raise
        raise UsageError(one_line(complaint.getvalue())) from None


def one_line(box: str) -> str:
    """The complaint in tyro's box, the text between its first two rules without the frame, and the suggested flags."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("╭") or "───" in line or "---" in line]
    message = lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else lines
    complaint = " ".join(line.strip("│| ") for line in message).strip().rstrip(".")
    close = re.findall(r"^[│|]\s+(--[\w-]+)", "\n".join(lines), re.MULTILINE) if "Unrecognized" in complaint else []
    advice = f"perhaps {' or '.join(close)}; " if close else ""
    return f"{re.sub('^Error parsing (config|[A-Z][A-Za-z]*): ', '', complaint)}; {advice}--help lists the flags"
