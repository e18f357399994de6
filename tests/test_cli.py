"""The command line: a flag beats the preset, the preset beats the default, and a mistake is one line that names it."""

import dataclasses
import io
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from config_vit_cifar10 import ViTConfig
from training.cli import parse_training_command
from training.errors import RunError, Terminated, UsageError, exit_codes

OTHER_VALUES = {  # no default among them; together they are a valid config
    "dataset": "digits", "data_dir": "elsewhere", "data_url": "http://mirror/file", "cache": False,
    "max_train_images": 1000, "val_size": 500, "img_size": 24, "num_epochs": 7, "batch_size": 16, "optimizer": "sgd",
    "learning_rate": 0.25, "weight_decay": 0.125, "warmup_epochs": 3, "clip_grad_norm": 1.0, "crop_padding": 2,
    "horizontal_flip": False, "auto_augment": False, "augment_policy": "svhn", "randaugment_magnitude": 5,
    "random_erasing": 0.25, "mixup_alpha": 0.75, "cutmix_alpha": 1.0, "mix_probability": 0.5, "label_smoothing": 0.1,
    "num_workers": 2, "seed": 0, "device": "cpu", "precision": "bf16", "compile": True, "tensorboard": True,
    "small_images_share": 0.5, "muon_learning_rate": 0.05, "schedule": "linear", "global_pool": "avg", "qk_norm": True,
    "pos_embed": "relative", "zero_init": True, "init_from": "weights.pth", "freeze_backbone": True,
    "layer_decay": 0.75, "output_dir": "somewhere", "save_minutes": 2.5, "save_every": 5, "preset": "small",
    "patch_size": 3, "embed_dim": 64, "depth": 5, "num_heads": 4, "mlp_ratio": 2.5, "dropout": 0.0,
    "rel_pos_lr_scale": 10.0,
}  # fmt: skip


def parse(*args: str):
    return parse_training_command(ViTConfig, "", args)


def test_every_field_has_its_flag():
    fields = {field.name: field.default for field in dataclasses.fields(ViTConfig)}
    assert OTHER_VALUES.keys() == fields.keys()
    assert [name for name, value in OTHER_VALUES.items() if value == fields[name]] == []
    for left_out in ("augment_policy", "auto_augment"):  # a policy needs auto_augment
        values = {name: value for name, value in OTHER_VALUES.items() if name != left_out}
        args = []
        for name, value in values.items():
            flag = name.replace("_", "-")
            args += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        assert parse(*args, "--resume").config == ViTConfig(**values)  # a new run would need no such idle flags


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (["--compile"], True),
        (["--no-compile"], False),
        (["--compile", "auto"], "auto"),
        (["--compile=auto"], "auto"),
        (["--compile", "--seed", "7"], True),
        (["--compile", "--no-compile"], False),
    ],
)
def test_compiling_is_a_flag_with_and_without_a_value(flags, value):
    assert parse(*flags).config.compile == value


def test_without_flags_there_are_the_defaults_and_a_new_run():
    command = parse()
    assert command.config == ViTConfig()
    assert not command.resume
    assert not command.overwrite
    assert not command.extend


def test_a_preset_beats_the_default():
    assert parse("--preset", "small").config == ViTConfig(preset="small", embed_dim=96, depth=6)


def test_a_preset_may_be_given_with_an_equals_sign():
    assert parse("--preset=quick").config == parse("--preset", "quick").config == ViTConfig.from_preset("quick")


@pytest.mark.parametrize("args", [["--preset", "small", "--depth", "3"], ["--depth=3", "--preset=small"]])
def test_a_flag_beats_the_preset_whichever_comes_first(args):
    config = parse(*args).config
    assert (config.embed_dim, config.depth) == (96, 3)


def test_a_switch_of_the_preset_can_be_switched_back():
    config = parse("--preset", "no-augment", "--auto-augment").config
    assert (config.auto_augment, config.horizontal_flip) == (True, False)


@pytest.mark.parametrize(
    ("idle", "used"),
    [
        ("--muon-learning-rate 0.01", "--muon-learning-rate 0.01 --optimizer muon"),
        ("--randaugment-magnitude 15", "--randaugment-magnitude 15 --augment-policy randaugment"),
        ("--mix-probability 0.5", "--mix-probability 0.5 --cutmix-alpha 1"),
        ("--rel-pos-lr-scale 30", "--rel-pos-lr-scale 30 --pos-embed relative"),
        (
            "--rel-pos-lr-scale 30 --pos-embed relative --freeze-backbone --init-from x",
            "--rel-pos-lr-scale 30 --pos-embed relative --init-from x",
        ),
        ("--layer-decay 0.5 --freeze-backbone --init-from x", "--layer-decay 0.5 --init-from x"),
        (
            "--muon-learning-rate 0.01 --optimizer muon --freeze-backbone --init-from x",
            "--muon-learning-rate 0.01 --optimizer muon --init-from x",
        ),
        ("--optimizer muon --freeze-backbone --init-from x", "--optimizer muon --init-from x"),
        ("--data-url file:///mirror --dataset digits", "--data-url file:///mirror"),
        ("--no-cache --dataset digits", "--no-cache --dataset image-folder"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused_but_for_a_run_that_began_with_it(idle, used):
    name = idle.split()[0].removeprefix("--").replace("-", "_")
    with pytest.raises(UsageError, match=f"^{name} (.* )?has no use without "):
        parse(*idle.split())
    name = name.removeprefix("no_")
    assert getattr(parse(*used.split()).config, name) == getattr(parse(*idle.split(), "--resume").config, name)


def test_what_a_preset_has_may_be_idle():
    assert parse("--preset", "overnight", "--cutmix-alpha", "0").config.mix_probability == 0.5


def test_an_edited_default_holds_for_every_preset_that_does_not_name_it():
    @dataclass(frozen=True, kw_only=True)
    class Edited(ViTConfig):
        preset: Literal["baseline", "small", "no-warmup"] = "small"
        warmup_epochs: float | Literal["auto"] = 3

    config = parse_training_command(Edited, "", []).config
    assert (config.preset, config.embed_dim, config.warmup) == ("small", 96, 3)
    assert parse_training_command(Edited, "", ["--preset=no-warmup"]).config.warmup == 0


def test_resume_overwrite_and_extend_are_read():
    assert parse("--resume").resume
    assert parse("--overwrite", "--preset", "quick").overwrite
    longer = parse("--resume", "--extend", "--num-epochs", "150")
    assert longer.resume
    assert longer.extend


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--nonsense 1", "--nonsense"),
        ("--num-epoch 20", "--num-epoch"),
        ("--pre quick", "--pre"),
        ("--preset huge", "--preset"),
        ("--preset=huge", "--preset"),
        ("--preset", "--preset"),
        ("--dataset mnist", "--dataset"),
        ("--augment-policy mnist", "--augment-policy"),
        ("--precision fp16", "--precision"),
        ("--num-epochs", "--num-epochs"),
        ("--data-dir --resume", "--data-dir"),
        ("--num-epochs many", "--num-epochs"),
        ("--num-epochs 1.5", "--num-epochs"),
        ("--learning-rate=", "--learning-rate"),
        ("--epochs 5", "--epochs, 5; perhaps --num-epochs"),
        ("stray", "stray"),
        ("--preset quick stray", "stray"),
        ("--auto-augment yes", "yes"),
        ("--resume --overwrite", "--overwrite"),
        ("--extend", "--resume"),
        ("--extend --overwrite", "--resume"),
        ("--no-resume", "--no-resume"),
        ("--patch-size 5", "patch_size"),
        ("--num-heads 7", "num_heads"),
        ("--num-epochs 5 --warmup-epochs 6", "warmup_epochs"),
        ("--warmup-epochs x", "--warmup-epochs"),
        ("--preset demo --warmup-epochs 1000", "warmup_epochs"),
        ("--learning-rate nan", "learning_rate"),
        ("--learning-rate -0.1", "learning_rate"),
        ("--dropout inf", "dropout"),
        ("--batch-size 0", "batch_size"),
        ("--mix-probability 2", "mix_probability"),
        ("--val-size -1", "val_size"),
        ("--output-dir=", "output_dir"),
        ("--compile maybe", "invalid choice 'maybe' for argument '--compile'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(line, named):
    with pytest.raises(UsageError) as caught:
        parse(*line.split(" "))
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "UTF-8", "cp1252", "ascii"])
def test_a_mistake_is_named_whatever_characters_the_console_has(encoding, monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(UsageError, match="--nonsense"):
        parse("--nonsense", "1")
    assert (out.tell(), err.tell()) == (0, 0)  # it is left to exit_codes to say so


@pytest.mark.parametrize(("values", "named"), [({"num_epochs": 0}, "num_epochs"), ({"num_epoch": 50}, "num_epoch")])
def test_a_mistake_edited_into_a_preset_is_one_line_that_names_it(values, named, monkeypatch):
    monkeypatch.setitem(ViTConfig.presets, "quick", values)
    with pytest.raises(UsageError, match=named):
        parse("--preset", "quick")


@pytest.mark.parametrize(("error", "code"), [(RunError, 1), (UsageError, 2)])
def test_a_users_mistake_ends_with_one_line_on_stderr_and_its_exit_code(error, code, capsys):
    with pytest.raises(SystemExit) as stop, exit_codes("advice"):
        raise error("img.png is no picture")
    assert stop.value.code == code
    assert capsys.readouterr() == ("", "error: img.png is no picture\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_exit_code_and_advice_and_its_handler_is_put_back(number, code, capsys):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop, exit_codes("Go on with --resume."):
        os.kill(os.getpid(), number)
    assert stop.value.code == code
    assert capsys.readouterr() == ("", "\nstopped. Go on with --resume.\n")
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
@pytest.mark.parametrize("way", ["cause", "context"])
def test_an_error_that_a_signal_became_on_its_way_ends_as_the_signal(stop, code, way, capsys):
    """As in torch's writer, whose end fails when it is left early, and in the import of a module in C."""
    error = RuntimeError("unexpected pos")
    setattr(error, f"__{way}__", stop())
    with pytest.raises(SystemExit) as ended, exit_codes("Go on with --resume."):
        raise error
    assert ended.value.code == code
    assert capsys.readouterr() == ("", "\nstopped. Go on with --resume.\n")


def test_what_could_not_be_done_at_a_signal_is_still_said(capsys):
    error = RunError("no room")
    error.__context__ = KeyboardInterrupt()
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (1, "error: no room\n")


def test_a_sigterm_that_comes_while_an_error_is_being_said_changes_nothing(monkeypatch, capsys):
    say = sys.stderr.write

    def say_late(text: str) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return say(text)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys.stderr, "write", say_late)
    with pytest.raises(SystemExit) as stop, exit_codes():
        raise UsageError("no such flag")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: no such flag\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_of_the_program_itself_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), exit_codes():
        _ = 1 / 0
    with pytest.raises(RuntimeError), exit_codes():
        _ = torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.parametrize("empty", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_a_computer_without_the_memory_ends_a_script_with_one_line(empty, capsys):
    with pytest.raises(SystemExit) as stop, exit_codes():
        empty(2**46)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: out of memory \(.+\)\. Smaller batches, images or models need less\n", said)


def test_a_reader_that_leaves_ends_a_script_without_a_traceback():
    """As behind `| head`."""
    command = [sys.executable, Path(__file__).parents[1] / "train_vit_cifar10.py", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(("full", "code"), [(">/dev/full", 0), ("2>/dev/full", 0), (">/dev/full 2>&1 wrong", 2)])
def test_output_to_a_full_disk_changes_no_exit_code(tmp_path, full, code):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from training.console import print_warning, say\n"
        "from training.errors import UsageError, exit_codes\n"
        "with exit_codes():\n"
        "    say('out'); print_warning('err'); print('out')\n"
        "    if sys.argv[1:]: raise UsageError('wrong')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = f"{sys.executable} {script} {full}"
    assert subprocess.run(command, shell=True, env=environment, check=False).returncode == code


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_console_is_a_place_for_what_nobody_wants_to_read(tmp_path, closed):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from training.errors import exit_codes\n"
        "with exit_codes():\n"
        "    print('out', sys.stdout.isatty()); print('err', file=sys.stderr)\n"
        f"    print(open({str(tmp_path / 'file')!r}, 'w').fileno() > 2, file=open({str(tmp_path / 'free')!r}, 'w'))\n"
    )
    ended = subprocess.run(
        f"{sys.executable} {script} {closed}", shell=True, capture_output=True, text=True, check=False
    )
    said = ("" if ">&-" in closed.split() else "out False\n", "" if "2>" in closed else "err\n")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, *said)
    assert (tmp_path / "free").read_text() == "True\n"
