"""A resumed run is the one that was stopped, or says in what it is not; the command that resumes it can be run."""

import copy
import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from config_vit_cifar10 import ViTConfig
from resnet import ResNet18
from training.errors import UsageError
from training.provenance import (
    count_parameters,
    describe_machine,
    refuse_other_run,
    refuse_other_settings,
    resume_command,
    warn_of_other_machine,
)
from vit import VisionTransformer

FREE = {  # changes neither the model nor what it learns from
    "preset", "output_dir", "data_dir", "data_url", "cache", "num_workers", "device", "compile", "save_minutes",
    "save_every", "tensorboard", "precision",
}  # fmt: skip
MACHINE = {
    "device": "cpu", "cpu": "Old 1000", "threads": 2, "world_size": 1, "compile": False, "num_cpus": 4,
    "platform": "Linux", "git_revision": "abc", "versions": {"torch": "2.14.0", "numpy": "2.0", "python": "3.11"},
    "command": ["python", "train_vit_cifar10.py", "--output-dir", "my run", "--overwrite"],
}  # fmt: skip


def run_of(**changes: Any) -> dict[str, Any]:
    """What a run of these settings says of itself."""
    return {
        "model_name": "VisionTransformer", "model_args": {"depth": 12}, "config": ViTConfig(**changes).to_dict(),
        "extended_from": [], "data": {"class_names": ["a", "b"], "mean": [0.5] * 3}, "split": "test",
        "precision": "float32", "machine": MACHINE,
    }  # fmt: skip


class Settings(ViTConfig):
    """Settings of any values, good or bad."""

    def __init__(self, values: dict[str, Any] | None = None):
        self.__dict__.update(values or ViTConfig().to_dict())

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def refusal(saved: dict[str, Any], now: dict[str, Any], extend: bool = False) -> str:
    """The one line that the run is refused with; empty where it is not."""
    before = copy.deepcopy((saved, now))
    line = ""
    try:
        refuse_other_settings(saved, Settings(now["config"]), extend)
        refuse_other_run(saved, now, VisionTransformer)
    except UsageError as error:
        line = str(error)
    assert len(line.splitlines()) <= 1
    assert (saved, now) == before
    return line


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ViTConfig)])
def test_a_resumed_run_may_differ_in_what_it_does_not_learn_from_and_in_nothing_else(name, extend):
    saved, now = run_of(), run_of(num_epochs=150 if extend else 100)
    now["config"][name] = 10**9 if name == "num_epochs" else "another"
    line = refusal(saved, now, extend)
    if name in FREE or (extend and name in ("num_epochs", "small_images_share")):  # the latter follows from the first
        assert line == ""
    else:
        assert f"{name} was {saved['config'][name]}, is {now['config'][name]}" in line
        assert line.count(" was ") == 1
        assert line.endswith("with the rest of the longer schedule" if name == "num_epochs" else "another --output-dir")


def test_all_differences_are_listed():
    line = refusal(run_of(), run_of(seed=7, depth=6, cache=False))
    assert line == (
        "--resume goes on with the settings that the run began with: seed was 42, is 7; depth was 12, is 6. Give those "
        "of before (its command: python train_vit_cifar10.py --output-dir 'my run'), or start a new run in "
        "another --output-dir"
    )


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("name", ["model_name", "model_args", "data", "split"])
def test_another_model_other_data_and_another_arithmetic_are_refused_too(name, extend):
    other = {"model_args": {"depth": 6}, "data": {"class_names": ["a"]}}.get(name, "another")
    line = refusal(run_of(), run_of(num_epochs=150 if extend else 100) | {name: other}, extend)
    assert f"{name} is not what it was" in line


def test_a_setting_that_the_saved_run_did_not_know_had_its_default():
    saved = run_of()
    del saved["config"]["save_minutes"], saved["config"]["random_erasing"], saved["model_args"]["depth"]
    assert refusal(saved, run_of()) == ""
    assert "random_erasing was 0.0, is 0.25" in refusal(saved, run_of(random_erasing=0.25))
    assert "model_args is not what it was" in refusal(saved, run_of() | {"model_args": {"depth": 6}})


def test_another_number_of_test_images_is_refused_where_the_saved_run_knows_it():
    now = run_of()
    now["data"] = now["data"] | {"num_test_images": 100}
    assert refusal(run_of(), now) == ""
    saved = run_of()
    saved["data"] = saved["data"] | {"num_test_images": 99}
    assert "data is not what it was" in refusal(saved, now)


def test_a_setting_that_is_no_more_is_no_difference():
    saved = run_of()
    saved["config"]["num_processes"] = "auto"
    assert refusal(saved, run_of()) == ""


@pytest.mark.parametrize(("num_epochs", "refused"), [(99, True), (100, True), (101, False)])
def test_extending_needs_more_epochs(num_epochs, refused):
    line = refusal(run_of(), run_of(num_epochs=num_epochs), extend=True)
    assert bool(line) == refused
    assert not refused or re.fullmatch(r"--extend needs more than the 100 epochs of the run: .*--num-epochs", line)


def test_extending_changes_the_number_of_epochs_alone():
    line = refusal(run_of(), run_of(num_epochs=150, warmup_epochs=20), extend=True)
    assert "warmup_epochs was 10, is 20" in line
    assert "num_epochs was" not in line


def test_more_epochs_are_refused_with_the_flag_that_helps_and_fewer_without():
    assert "--extend" in refusal(run_of(), run_of(num_epochs=150))
    line = refusal(run_of(), run_of(num_epochs=50))
    assert "num_epochs was 100, is 50" in line
    assert "--extend" not in line
    assert "--extend" not in refusal(run_of(), run_of(seed=7))
    assert "--extend" not in refusal(run_of(), run_of(num_epochs=150, seed=7))  # it would be refused for the seed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 4}, "threads 2 before, 4 now"),
        ({"cpu": "New 2000"}, "cpu Old 1000 before, New 2000 now"),
        ({"device": "NVIDIA"}, "device cpu before, NVIDIA now"),
        ({"compile": True}, "compile False before, True now"),
        ({"world_size": 2}, "world_size 1 before, 2 now"),
        ({"versions": MACHINE["versions"] | {"torch": "2.15.0"}}, "torch 2.14.0 before, 2.15.0 now"),
        ({"threads": 4, "compile": True}, "threads 2 before, 4 now; compile False before, True now"),
    ],
)
def test_a_machine_whose_last_bits_may_differ_is_a_warning(change, said, capsys):
    warn_of_other_machine(MACHINE, MACHINE | change)
    line = f"WARNING: the bits may differ from those of an uninterrupted run: {said}\n"
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    ("compiled", "saved", "warns"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_what_torch_compile_compiled_for_counts_where_it_did_and_is_known(compiled, saved, warns, capsys):
    before = MACHINE | {"compile": compiled} | ({"TORCHINDUCTOR_CPP_MARCH": None} if saved else {})
    assert warn_of_other_machine(before, before | {"TORCHINDUCTOR_CPP_MARCH": "x"}) == warns
    assert ("TORCHINDUCTOR_CPP_MARCH None before, x now" in capsys.readouterr().err) == warns


def test_the_same_machine_and_what_moves_no_bits_is_none(capsys):
    warn_of_other_machine(MACHINE, copy.deepcopy(MACHINE))
    other = {"platform": "Linux 7", "git_revision": None, "num_cpus": 8}
    warn_of_other_machine(MACHINE, MACHINE | other | {"versions": MACHINE["versions"] | {"numpy": "2.1"}})
    assert capsys.readouterr() == ("", "")


def test_the_machine_is_described_in_plain_values_and_is_the_same_twice(monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CPP_MARCH", "icelake-server")
    machine = describe_machine(torch.device("cpu"), compiled=False)
    assert machine["TORCHINDUCTOR_CPP_MARCH"] == "icelake-server"
    assert json.loads(json.dumps(machine)) == machine
    assert machine.keys() >= MACHINE.keys()
    assert machine["device"] == "cpu"
    assert machine["cpu"]
    assert (machine["threads"], machine["num_cpus"]) == (torch.get_num_threads(), os.cpu_count())
    assert machine["versions"]["torch"] == torch.__version__
    warn_of_other_machine(machine, describe_machine(torch.device("cpu"), compiled=False))
    assert capsys.readouterr().err == ""


def test_in_a_clone_the_revision_is_known():
    if not (Path(__file__).parents[1] / ".git").exists():
        pytest.skip("this is no clone")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", describe_machine(torch.device("cpu"), compiled=False)["git_revision"])


def test_without_git_there_is_no_revision_and_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_machine(torch.device("cpu"), compiled=False)["git_revision"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["train.py"],
        ["train.py", "--output-dir", 'my run\'s $HOME; echo `x` & "y" | *'],
        ["a folder/train.py", "--output-dir=tab\tand\nline", "--data-dir", ""],
    ],
)
def test_the_command_that_resumes_says_the_same_to_a_shell(words):
    python, *others = shlex.split(resume_command(words))
    assert shutil.which(python) == sys.executable
    assert others == [*words, "--resume"]


@pytest.mark.parametrize("flag", ["--resume", "--overwrite", "--extend"])
def test_the_command_that_resumes_neither_starts_anew_nor_extends_again(flag):
    command = resume_command(["train.py", "--preset", "demo", flag, "--num-epochs=9"])
    assert shlex.split(command)[1:] == ["train.py", "--preset", "demo", "--num-epochs=9", "--resume"]


def test_another_arithmetic_is_refused_with_the_flag_that_keeps_it():
    line = refusal(run_of() | {"precision": "bfloat16"}, run_of() | {"precision": "float32"}, False)
    assert line.endswith("precision was bf16 and would be another here: give --precision bf16")


@pytest.mark.parametrize("model", [VisionTransformer, ResNet18])
def test_the_parameters_are_counted_without_allocating_them(model):
    expected = sum(parameter.numel() for parameter in model(num_classes=10).parameters())
    assert count_parameters(model, num_classes=10) == expected
