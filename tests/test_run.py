"""A run that an earlier version began goes on. A GPU is looked at seldom, and at once when a signal has come."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from config_vit_cifar10 import ViTConfig
from train_vit_cifar10 import main
from training import checkpoint
from training.cli import parse_training_command
from training.console import LINE_EVERY, TrainProgress
from training.errors import RunError, UsageError
from training.provenance import refuse_other_settings
from training.run import Run
from vit import VisionTransformer

# A run of two epochs, stopped by SIGTERM in its first, and the history of the same run that nobody stopped. They are of
# the last version that started processes by itself: its settings have num_processes, and know nothing of later ones.
EARLIER = Path(__file__).parent / "run_of_format_2"


def test_a_run_that_an_earlier_version_began_goes_on_to_the_end(tmp_path, capsys):
    folder = shutil.copytree(EARLIER, tmp_path / "run")
    saved = checkpoint.load(folder / "last.pth")
    command = json.loads((folder / "config.json").read_text())["command"]
    flags = [word for word in command[2:-2] if not word.startswith("--num-processes")]
    flags += ["--output-dir", str(folder), "--resume"]
    main(parse_training_command(ViTConfig, "", flags).config, VisionTransformer, True, False, False)
    assert f"Resumed   after 0 epochs and {saved['epoch_sums']['step']} steps" in capsys.readouterr().out
    found = json.loads((folder / "training_history.json").read_text())
    whole = json.loads((EARLIER / "history_of_the_whole_run.json").read_text())
    assert found["epoch"] == [1, 2]
    assert found["lr"] == whole["lr"]
    assert found["train_loss"] == pytest.approx(whole["train_loss"], rel=0.01)  # of another machine's rounding


def test_other_settings_are_refused_before_any_data_is_read(tmp_path, monkeypatch):
    folder = shutil.copytree(EARLIER, tmp_path / "run")
    monkeypatch.setattr("train_vit_cifar10.load_dataset", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UsageError, match="dataset was digits, is cifar10"):
        main(ViTConfig(output_dir=str(folder)), VisionTransformer, True, False, False)


@pytest.mark.parametrize("damage", ["{", None, json.dumps({"config": {}, "extended_from": [1]})])
def test_a_resumed_run_mends_its_config_json(tmp_path, damage):
    folder = shutil.copytree(EARLIER, tmp_path / "run")
    command = json.loads((folder / "config.json").read_text())["command"]
    flags = [word for word in command[2:-2] if not word.startswith("--num-processes")] + ["--output-dir", str(folder)]
    (folder / "config.json").write_text(damage) if damage else (folder / "config.json").unlink()
    main(parse_training_command(ViTConfig, "", flags).config, VisionTransformer, True, False, False)
    content = json.loads((folder / "config.json").read_text())
    assert (content["config"]["dataset"], content["extended_from"]) == ("digits", [])


@pytest.mark.parametrize("by_interrupt", [False, True])
def test_output_that_nobody_reads_ends_a_run_that_is_saved(tmp_path, monkeypatch, by_interrupt):
    flags = ["--preset", "demo", "--num-epochs", "1", "--depth", "1", "--embed-dim", "12", "--num-heads", "1"]
    config = parse_training_command(ViTConfig, "", [*flags, "--output-dir", str(tmp_path / "run")]).config
    shown = iter(range(3))  # then nobody reads

    def update(*_) -> None:
        if next(shown, None) is None:
            if by_interrupt:
                os.kill(os.getpid(), signal.SIGINT)
            raise BrokenPipeError

    monkeypatch.setattr(TrainProgress, "update", update)
    said = "" if by_interrupt else "nobody reads the output any more; "
    with pytest.raises(
        KeyboardInterrupt if by_interrupt else RunError, match=rf"^{said}saved in .*run\. Go on with: .* --resume"
    ):
        main(config, VisionTransformer, False, False, False)
    assert checkpoint.load(tmp_path / "run" / "last.pth")["epoch_sums"]["step"] == 4


@pytest.mark.parametrize(
    ("launch", "said"),
    [("first", "This run has all its 1 epochs already"), ("second", "Epoch [1/1]"), ("first, damaged", "Epoch [1/1]")],
)
def test_a_restart_by_torchrun_overwrites_another_launchs_run_and_never_its_own(
    tmp_path, monkeypatch, capsys, launch, said
):
    flags = ["--preset", "demo", "--device", "cpu", "--num-epochs", "1", "--depth", "1", "--embed-dim", "12"]
    flags += ["--num-heads", "1", "--max-train-images", "64", "--output-dir", str(tmp_path / "run")]
    config = parse_training_command(ViTConfig, "", flags).config
    monkeypatch.setattr("training.distributed.launch_id", lambda: "first")
    main(config, VisionTransformer, False, False, False)
    capsys.readouterr()
    if "damaged" in launch:
        for name in ("last.pth", "last.prev.pth"):
            (tmp_path / "run" / name).write_bytes(b"")
    monkeypatch.setattr("training.distributed.launch_id", lambda: launch.split(",")[0])
    monkeypatch.setattr("training.distributed.was_restarted", lambda: True)
    main(config, VisionTransformer, False, True, False)
    assert said in capsys.readouterr().out


def test_ranks_must_agree_on_extend(tmp_path, monkeypatch):
    """Else one of them may go on with small images where the others have full ones."""

    def rank_0_first(_, shared: dict[str, Any]) -> None:
        raise UsageError(f"extend: {shared['extend']}")

    monkeypatch.setattr("training.distributed.rank_0_first", rank_0_first)
    for extend in (True, False):
        with pytest.raises(UsageError, match=f"extend: {extend}"):
            main(ViTConfig(output_dir=str(tmp_path / "run")), VisionTransformer, False, False, extend)


@pytest.mark.parametrize(("scale", "rates"), [(1, {0.002, 0.02}), (30, {0.002, 0.02, 0.06})])
def test_a_run_scales_the_rate_of_its_relative_positions(tmp_path, scale, rates):
    flags = ["--preset", "cpu-15min", "--dataset", "digits", "--img-size", "16", "--val-size", "10", "--depth", "1"]
    flags += ["--num-epochs", "1", "--max-train-images", "10", "--rel-pos-lr-scale", str(scale)]
    config = parse_training_command(ViTConfig, "", [*flags, "--output-dir", str(tmp_path / "run")]).config
    main(config, VisionTransformer, False, False, False)
    groups = checkpoint.load(tmp_path / "run" / "last.pth")["optimizer"]["param_groups"]
    assert {group["initial_lr"] for group in groups} == rates
    assert [len(group["params"]) for group in groups if group["initial_lr"] == 0.06] == ([1] if scale == 30 else [])


@pytest.mark.parametrize(
    ("num_epochs", "given", "saved", "warmup"),
    [
        (20, "auto", 10, 10),  # before the warmup of a short run was a fifth of it, it was 10 epochs or given
        (100, "auto", 1, 1),  # 5 epochs, extended
        (100, 10, 1, 10),  # given: refused later
        (5, "auto", 10, 1),  # fewer epochs: refused later
    ],
)
def test_a_resumed_run_keeps_its_warmup_where_none_is_given(num_epochs, given, saved, warmup):
    run = Run(ViTConfig(num_epochs=num_epochs, warmup_epochs=given), resume=True, overwrite=False, extend=False)
    run.saved = {"config": {"warmup_epochs": saved}, "extended_from": []}
    assert run.broadcast_start().warmup == run.config.warmup == warmup


@pytest.mark.parametrize(
    ("num_epochs", "share", "extended_from", "extend", "small"),
    [
        (40, 0.8, [], True, 16),  # the first 20 had 16, and the next 20 have none
        (20, 0.8, [10], False, 16),  # resumed after it was extended from 10 epochs to these 20
        (40, 0.8, [], False, 32),  # more epochs without --extend: refused later
        (40, None, [], True, 0),  # saved before there were small images
        (20, 0.78, [10], True, 16),  # extended by the same command; 0.78 stays 0.78, or the run would be another
    ],
)
def test_an_extended_run_keeps_its_small_images(num_epochs, share, extended_from, extend, small):
    run = Run(ViTConfig(num_epochs=num_epochs, small_images_share=0.8), resume=True, overwrite=False, extend=extend)
    saved = {"num_epochs": 20, "warmup_epochs": 1} | ({} if share is None else {"small_images_share": share})
    run.saved = {"config": saved, "extended_from": extended_from}
    assert run.broadcast_start().small_epochs == run.config.small_epochs == small
    assert num_epochs != 20 or run.config.small_images_share == share


def test_an_extended_run_of_another_length_is_told_of_extend():
    before = ViTConfig(num_epochs=40, small_images_share=0.4)
    saved = {"config": before.to_dict(), "extended_from": [20], "machine": {"command": ["python", "train.py"]}}
    run = Run(replace(before, num_epochs=60), resume=True, overwrite=False, extend=False)
    run.saved = saved
    with pytest.raises(UsageError, match=r"num_epochs was 40, is 60\. A run of more epochs .* give --extend"):
        refuse_other_settings(saved, run.broadcast_start(), extend=False)


def test_extending_with_a_size_that_has_no_small_images_is_left_to_the_refusal():
    config = ViTConfig(num_epochs=40, img_size=21, patch_size=3, crop_padding=2)
    run = Run(config, resume=True, overwrite=False, extend=True)
    run.saved = {"config": {"num_epochs": 20, "warmup_epochs": 4, "small_images_share": 0.8}, "extended_from": []}
    assert run.broadcast_start().img_size == 21


def test_the_first_look_on_a_gpu_may_be_the_last_of_a_short_epoch(capsys):
    for num_batches, batch in ((12, 12), (782, 20), (782, 100)):
        TrainProgress(num_batches, 64 * num_batches, epochs_left=3).update(batch, 64 * batch, 1.0, 1.0, 0.1)
    progress = TrainProgress(782, 50_048, epochs_left=1)
    for batch in (100, 200):
        progress.update(batch, 6400, 1.0, 1.0, 0.1)
    assert "for the training steps of 1 epoch" in capsys.readouterr().out


def test_a_gpu_is_looked_at_at_the_second_step_every_hundredth_and_when_a_signal_has_come():
    run: Any = Run(ViTConfig(), resume=False, overwrite=False, extend=False)
    run.device, run.progress, came = SimpleNamespace(type="cuda"), SimpleNamespace(batches_done=0), 0
    run.signals = SimpleNamespace(came=lambda: came)
    assert [step for step in range(1, 2 * LINE_EVERY + 1) if run.sync_due(step)] == [2, LINE_EVERY, 2 * LINE_EVERY]
    run.progress.batches_done = LINE_EVERY + 50  # resumed there
    assert [step for step in range(151, 2 * LINE_EVERY + 1) if run.sync_due(step)] == [152, 2 * LINE_EVERY]
    came = 15
    assert run.sync_due(1)
    run.device, came = SimpleNamespace(type="cpu"), 0
    assert run.sync_due(1)
