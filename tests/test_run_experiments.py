"""Suites of experiments: what is planned, and that a suite skips, resumes, reports failures and survives a kill."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch
from processes import PATIENCE, Run, processes, wait_until
from tqdm import tqdm

import run_experiments
from config_experiments import SUITES, Experiment
from config_vit_cifar10 import ViTConfig
from evaluation.comparison import group, to_markdown
from evaluation.run_record import read_run
from run_experiments import SuiteConfig, advice, has_other_images, main, passes, plan, work_of
from tests.same_runs import history_of
from training.console import TrainProgress
from training.data import Dataset
from training.errors import RunError, UsageError
from training.history import new_history, write_json

ROOT = Path(__file__).parents[1]
TINY = "train_vit_cifar10.py --preset demo --depth 1 --embed-dim 24 --batch-size 16 --warmup-epochs 0"
TWO = {"plain": Experiment(TINY), "longer": Experiment(f"{TINY} --patch-size 8", images=0.5, epochs=2)}


@pytest.fixture
def suite(monkeypatch, tmp_path) -> SuiteConfig:
    """A suite of two tiny experiments on digits: 2 and 4 epochs, 128 and 64 images. Its runs have one thread each."""
    monkeypatch.setitem(SUITES, "recipe", TWO)
    monkeypatch.setattr(run_experiments, "num_cpus", lambda: 1)
    folder = str(tmp_path / "experiments")
    return SuiteConfig("recipe", epochs=2, max_train_images=128, dataset="digits", val_size=20, output_dir=folder)


@pytest.fixture
def forked(monkeypatch, launcher):
    """The scripts of a suite in forks of the launcher. They are still processes, with their consoles in files."""

    class Forked:
        """A subprocess.Popen."""

        def __init__(self, command: list[str], *, env: dict[str, str], stdout: BinaryIO, **_: Any):
            log = Path(stdout.name)
            pid = launcher.fork(*command[1:], out=log, err=log, cwd=Path.cwd())
            launcher.running.append(run := Run(launcher, pid, log, log))
            self.run, self.send_signal, self.returncode = run, run.send, None

        def poll(self) -> int | None:
            if self.returncode is None and self.run.ends_within(0):
                self.returncode = self.run.wait_for_code()
            return self.returncode

        def wait(self) -> None:
            if self.returncode is None:
                self.returncode = self.run.wait_for_code()

    def run(command: list[Any], check: bool) -> SimpleNamespace:
        result = launcher.run(*command[1:])
        return SimpleNamespace(returncode=result.code)

    monkeypatch.setattr("training.job.subprocess", SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL))
    monkeypatch.setattr(run_experiments, "subprocess", SimpleNamespace(run=run))


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_can_be_planned(name):
    jobs = plan(SuiteConfig(name, seeds=3), 49_000)
    assert len(jobs) == 3 * len(SUITES[name])
    assert len({job.folder for job in jobs}) == len(jobs)
    assert {job.config.seed for job in jobs} == {1, 2, 3}
    for job in jobs:
        assert (job.config.dataset, job.config.val_size) == ("cifar10", 1000)


def test_the_suites_flag_names_every_suite():
    names = SuiteConfig.__annotations__["suite"].__args__[0].__args__
    assert set(names) == set(SUITES)


def test_shares_of_the_images_and_multiples_of_the_epochs():
    jobs = {job.name: job.config for job in plan(SuiteConfig("data-efficiency", epochs=10), 40_000)}
    equal_steps, equal_epochs = jobs["vit-5%-equal-steps"], jobs["vit-5%-equal-epochs"]
    assert (equal_steps.max_train_images, equal_steps.num_epochs) == (2000, 200)
    assert (equal_epochs.max_train_images, equal_epochs.num_epochs) == (2000, 10)
    assert (jobs["vit-100%-equal-epochs"].max_train_images, jobs["vit-100%-equal-epochs"].num_epochs) == (0, 10)
    own = {job.name: job.config.num_epochs for job in plan(SuiteConfig("recipe"), 49_000)}
    assert (own["baseline"], own["half-the-epochs"]) == (100, 50)


def changed_fields(before: ViTConfig, after: ViTConfig) -> set[str]:
    return {name for name, value in after.to_dict().items() if before.to_dict()[name] != value}


def test_leave_one_out_takes_one_part_of_cpu_15min_away_at_a_time():
    whole, *others = [job.config for job in plan(SuiteConfig("leave-one-out"), 49_000)]
    assert changed_fields(whole, ViTConfig.from_preset("cpu-15min")) <= {"seed", "output_dir"}
    parts = [changed_fields(whole, other) for other in others]
    assert parts == [{"zero_init"}, {"qk_norm"}, {"global_pool"}, {"pos_embed"}]


@pytest.mark.parametrize("epochs", [0, 1, 10])
@pytest.mark.parametrize("suite", ["data-efficiency", "ladder", "recipe"])
def test_a_run_of_more_or_fewer_epochs_warms_up_for_as_large_a_share_of_it(suite, epochs):
    names = tuple(name for name in SUITES[suite] if name != "no-warmup" and (epochs != 1 or name != "half-the-epochs"))
    jobs = plan(SuiteConfig(suite, epochs=epochs, only=names), 49_000)
    for script in {job.script for job in jobs}:
        shares = {job.config.warmup / job.config.num_epochs for job in jobs if job.script == script}
        assert max(shares) == pytest.approx(min(shares))


@pytest.mark.parametrize(
    ("flags", "epochs"), [("--num-epochs 30", 60), ("--preset=quick", 100), ("--preset quick --num-epochs 3", 6)]
)
def test_a_multiple_is_one_of_the_epochs_that_the_command_itself_has(monkeypatch, flags, epochs):
    monkeypatch.setitem(SUITES, "recipe", {"twice": Experiment(f"train_vit_cifar10.py {flags}", epochs=2)})
    [job] = plan(SuiteConfig("recipe"), 49_000)
    assert job.config.num_epochs == epochs


def test_the_rungs_of_the_ladder_lead_to_cpu_1h():
    rungs = [job.config for job in plan(SuiteConfig("ladder", epochs=10), 49_000)]
    assert [changed_fields(before, after) for before, after in pairwise(rungs)] == [
        {"auto_augment"},
        {"dropout"},
        {"label_smoothing"},
        {"batch_size"},
        {"depth", "num_epochs", "warmup_epochs"},
        {"global_pool"},
        {"pos_embed"},
        {"qk_norm"},
        {"optimizer"},
        {"zero_init"},
        {"learning_rate"},
        {"schedule"},
        {"small_images_share", "num_epochs", "warmup_epochs"},
        {"embed_dim", "num_heads", "num_epochs", "warmup_epochs"},
        {"batch_size"},
        {"schedule"},
        {"rel_pos_lr_scale"},
        {"auto_augment"},
        {"cutmix_alpha", "mix_probability"},
        {"muon_learning_rate"},
    ]
    left = changed_fields(rungs[-1], ViTConfig.from_preset("cpu-1h"))
    assert left <= {"preset", "seed", "num_epochs", "warmup_epochs", "output_dir"}


def test_the_rungs_of_the_ladder_have_the_same_arithmetic():
    jobs = plan(SuiteConfig("ladder", epochs=10), 49_000)
    first = work_of(jobs[0], 49_000)
    for job in jobs:
        assert work_of(job, 49_000) == pytest.approx(first, rel=0.07), job.name
    for job in jobs:
        assert job.config.num_epochs in (10, 20, 48, 104)


def test_an_image_of_half_the_size_counts_a_quarter():
    [job, *_] = plan(SuiteConfig("presets"), 49_000)
    config = replace(job.config, num_epochs=10, small_images_share=0.8)
    assert passes(config, 1000) == 2 * 1000 + 8 * 250
    assert passes(replace(config, max_train_images=100), 1000) == 400


@pytest.mark.parametrize(("done", "share"), [(0, 0.0), (4, 0.25), (8, 0.5), (9, 0.75), (10, 1.0)])
def test_the_share_that_is_done_is_one_of_the_arithmetic(tmp_path, done, share):
    [job, *_] = plan(SuiteConfig("presets"), 49_000)
    job = replace(job, config=replace(job.config, num_epochs=10, small_images_share=0.8), folder=tmp_path)
    (tmp_path / "training_history.json").write_text(json.dumps(dict.fromkeys(new_history("val"), [1] * done)))
    assert job.share_done() == share


@pytest.mark.parametrize("val_size", [5, 1430, 100_000])
def test_a_val_size_that_does_not_fit_is_refused(suite, val_size):
    with pytest.raises(UsageError, match=rf"--val-size must be 0 or between 10 and 1427 here, got {val_size}"):
        main(replace(suite, val_size=val_size))


def test_other_images_are_told_by_their_classes_numbers_and_mean(suite):
    images, labels = torch.full((100, 3, 16, 16), 51, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64)
    dataset = Dataset([str(digit) for digit in range(10)], images, labels, images, labels)
    [job, *_] = plan(suite, 128)
    job.folder.mkdir(parents=True)
    other_mean, other_names = {"mean": [0.2, 0.2, 0.21]}, {"class_names": ["a"]}
    (job.folder / "config.json").write_text('{"data": {"class_names": []}}')  # damaged: the table says so
    assert not has_other_images(job, dataset, [0.2] * 3)
    numbers = {"num_train_images": 80, "num_test_images": 100}  # 20 are held out
    for change, alike in [
        ({}, True), ({"mean": [0.2001] * 3}, True), (other_mean, False), (other_names, False), (numbers, True),
        (numbers | {"num_train_images": 81}, False), (numbers | {"num_test_images": 1}, False),
    ]:  # fmt: skip
        data = {"class_names": dataset.class_names, "mean": [0.2] * 3} | change
        (job.folder / "config.json").write_text(json.dumps({"data": data}))
        assert has_other_images(job, dataset, [0.2] * 3) != alike


def test_a_suite_whose_folder_holds_runs_of_other_images_is_refused(suite):
    [job, *_] = plan(suite, 128)
    job.folder.mkdir(parents=True)
    write_json(job.folder / "config.json", {"data": {"class_names": ["a"], "mean": [0.2] * 3}})
    with pytest.raises(UsageError, match=r"plain.seed-1 holds a run of other images than data: choose another"):
        main(suite)


def test_a_run_that_was_extended_or_has_another_precision_than_asked_for_is_another_run(suite, monkeypatch):
    monkeypatch.setitem(SUITES, "recipe", {"plain": Experiment(f"{TINY} --precision fp32")})
    [job] = plan(suite, 128)
    job.folder.mkdir(parents=True)
    config = job.config.to_dict()
    write_json(job.folder / "config.json", {"config": config, "extended_from": []})
    assert not job.is_finished()
    write_json(job.folder / "config.json", {"config": config, "extended_from": [1]})
    with pytest.raises(UsageError, match=r"plain.seed-1 holds another run \(it was extended"):
        _ = job.is_finished()
    write_json(job.folder / "config.json", {"config": config | {"precision": "bf16"}})
    with pytest.raises(UsageError, match=r"holds another run \(precision is bf16 there and fp32 here\)"):
        _ = job.is_finished()
    assert not replace(job, config=replace(job.config, precision="auto")).is_finished()


@pytest.mark.parametrize(("asked", "alike"), [("auto", True), ("fp32", True), ("bf16", False)])
def test_the_precision_of_a_suite_is_that_of_its_runs_and_counts_as_it_was_computed(suite, asked, alike):
    [job] = plan(replace(suite, precision=asked, only=("plain",)), 128)
    assert job.config.precision == asked
    job.folder.mkdir(parents=True)
    config = job.config.to_dict() | {"precision": "auto"}
    write_json(job.folder / "config.json", {"config": config, "precision": "float32"})
    with nullcontext() if alike else pytest.raises(UsageError, match="precision is fp32 there and bf16 here"):
        assert not job.is_finished()


def test_two_precisions_are_two_experiments(suite, monkeypatch):
    experiments = {name: Experiment(f"{TINY} --precision {name}") for name in ("fp32", "bf16")}
    monkeypatch.setitem(SUITES, "recipe", experiments)
    assert [job.name for job in plan(suite, 128)] == ["fp32", "bf16"]


@pytest.mark.parametrize(("given", "threads"), [(None, 4), ("", 4), ("0", 4), ("many", 4), ("1", 1), ("16", 16)])
def test_a_run_has_its_share_of_the_cores_or_the_threads_that_the_environment_says(monkeypatch, given, threads):
    monkeypatch.setattr(run_experiments, "num_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert SuiteConfig("recipe", parallel=2).threads == threads


def test_a_run_that_was_killed_is_said_to_be(suite):
    [job, *_] = plan(suite, 128)
    job.folder.mkdir(parents=True)
    job.log.write_text("  Batch [100/766] | Loss: 2.3\n")
    ends = [replace(job, process=SimpleNamespace(returncode=code)).outcome() for code in (-9, -11, 3)]
    assert "ended by SIGKILL (out of memory? fewer runs side by side need less): Batch" in ends[0]
    assert "ended by SIGSEGV: " in ends[1]
    assert "exit code 3: " in ends[2]


def test_a_slow_run_is_measured_by_what_it_says(suite, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    progress = TrainProgress(num_batches=200, num_images=200, epochs_left=1)
    for batch in range(1, 21):
        now += 2.5
        progress.update(batch, 1, loss=2.0, acc=25.0, lr=0.0001)
    [job, *_] = plan(suite, 128)
    job.folder.mkdir(parents=True)
    job.log.write_text(capsys.readouterr().out)
    assert replace(job, process=SimpleNamespace(poll=lambda: 0)).first_speed() == 0.4


def test_a_run_that_could_not_save_its_last_weights_has_failed(suite):
    [job, *_] = plan(replace(suite, val_size=0), 128)
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text(json.dumps({"config": job.config.to_dict()}))
    history = {name: [1.0] * job.config.num_epochs for name in new_history("test")}
    (job.folder / "training_history.json").write_text(json.dumps(history))
    job.log.write_text("error: not all of the run could be saved\n")
    assert [replace(job, process=SimpleNamespace(returncode=code)).failed for code in (0, 1)] == [False, True]


@pytest.mark.parametrize("config", [None, [], "text"])
def test_a_damaged_config_is_that_of_no_finished_run(suite, config):
    [job, *_] = plan(suite, 128)
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text(json.dumps({"config": config}))
    assert not job.is_finished()


def test_a_run_whose_epochs_are_too_short_to_be_timed_is_measured_by_the_first(suite):
    """Such a run still goes on, for perhaps thousands of epochs."""
    [job, *_] = plan(suite, 128)
    job.folder.mkdir(parents=True)
    job.log.write_text("Epoch [2/2000]\n")
    history = {name: [1.0] for name in new_history("val")} | {"images_per_second": [123.0]}
    (job.folder / "training_history.json").write_text(json.dumps(history))
    assert replace(job, process=SimpleNamespace(poll=lambda: None)).first_speed() == 123


def test_a_suite_runs_skips_what_is_finished_and_goes_on_with_the_rest(suite, forked, capsys):
    main(replace(suite, parallel=2))
    out = capsys.readouterr().out
    folders = [suite.folder / name / "seed-1" for name in TWO]
    assert "2 runs" in out
    assert all(f"done {folder}: best val accuracy" in out for folder in folders)
    assert [len(history_of(folder)["epoch"]) for folder in folders] == [2, 4]
    assert all((folder / "test_result.json").exists() for folder in folders)
    logs = [folder.with_name("seed-1.log").read_text() for folder in folders]

    for name in ("training_history.json", "test_result.json"):  # as if the second had been stopped
        (folders[1] / name).unlink()
    main(suite)
    out = capsys.readouterr().out
    assert "1 of them finished" in out
    assert folders[0].with_name("seed-1.log").read_text() == logs[0]
    assert (folders[1] / "test_result.json").exists()

    about = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({"config": about["config"]}))
    with pytest.raises(RunError, match="not all finished runs are in the table"):
        main(suite)

    with pytest.raises(UsageError, match=r"plain.seed-1 holds another run \(num_epochs is 2 there and 3 here\)"):
        main(replace(suite, epochs=3))
    with pytest.raises(UsageError, match=r"holds another run \(max_train_images is 128 there and 100 here\)"):
        main(replace(suite, max_train_images=100))


def test_the_table_has_what_earlier_commands_finished_by_the_same_settings_in_the_suites_order(
    suite, forked, monkeypatch
):
    monkeypatch.setitem(SUITES, "recipe", TWO | {"other": Experiment(f"{TINY} --depth 2")})
    main(replace(suite, only=("plain",), seeds=2))
    main(replace(suite, only=("other",), epochs=1))  # of another length than what follows
    main(replace(suite, only=("longer",)))
    monkeypatch.setitem(SUITES, "recipe", SUITES["recipe"] | {"plain-too": Experiment(TINY)})  # no row with its likes
    shutil.copytree(suite.folder / "plain" / "seed-2", suite.folder / "plain-too" / "seed-2")
    main(replace(suite, only=("longer",)))
    rows = [line.split(" | ")[:3] for line in (suite.folder / "table.md").read_text().splitlines()[2:]]
    assert [(name.strip("| "), seeds) for name, _, seeds in rows] == [("plain", "2 (1, 2)"), ("longer", "1 (1)")]


def test_a_failed_run_is_reported_and_the_others_go_on(suite, forked, capsys):
    suite.folder.mkdir(parents=True)
    (suite.folder / "plain").mkdir()
    (suite.folder / "plain" / "seed-1").write_text("in the way")
    with pytest.raises(RunError, match=r"1 of 2 runs failed: .*seed-1\. The same command tries"):
        main(suite)
    out = capsys.readouterr().out
    [failure] = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert failure.startswith(f"FAILED plain in {suite.folder / 'plain' / 'seed-1'}, exit code 1: ")
    assert failure.endswith(f"; see {suite.folder / 'plain' / 'seed-1.log'}")
    assert f"done {suite.folder / 'longer' / 'seed-1'}" in out


def test_a_suites_folder_that_cannot_be_written_to_is_refused_before_any_run(suite):
    Path(suite.output_dir).write_text("in the way")
    with pytest.raises(RunError, match="can't write to the folder"):
        main(suite)


@pytest.mark.parametrize("in_the_way", ["plain", "plain/seed-1.log/folder"])
def test_a_run_that_cannot_be_started_is_a_failed_one_and_no_work_that_is_left(
    suite, forked, capsys, monkeypatch, in_the_way
):
    bars = []

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(run_experiments, "tqdm", Bar)
    (suite.folder / in_the_way).parent.mkdir(parents=True)
    (suite.folder / in_the_way).write_text("in the way")
    with pytest.raises(RunError, match=r"1 of 2 runs failed: .*plain.seed-1\. "):
        main(suite)
    out = capsys.readouterr().out
    [failure] = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert re.match(rf"FAILED plain in {suite.folder}/plain/seed-1: can't .*{suite.folder}/plain", failure)
    assert f"done {suite.folder / 'longer' / 'seed-1'}" in out
    [bar] = bars
    assert 0 < bar.n == bar.total


@pytest.mark.parametrize(
    ("suite", "flags", "names"),
    [
        ("recipe", {"epochs": 1}, "baseline and half-the-epochs"),
        ("data-efficiency", {"max_train_images": 10, "epochs": 10}, "vit-5%-equal-epochs and vit-10%-equal-epochs"),
    ],
)
def test_experiments_that_come_to_the_same_settings_are_refused(suite, flags, names):
    num_images = flags.get("max_train_images", 49_000)
    with pytest.raises(UsageError, match=f"^{names} come to the same settings"):
        plan(SuiteConfig(suite, seeds=2, **flags), num_images)


def test_all_images_are_the_same_whether_they_are_counted_or_not(monkeypatch):
    counted = Experiment(f"{TINY} --max-train-images 500")
    monkeypatch.setitem(SUITES, "recipe", {"all": Experiment(TINY), "counted": counted})
    plan(SuiteConfig("recipe"), 1000)
    with pytest.raises(UsageError, match=r"^all and counted come to the same settings"):
        plan(SuiteConfig("recipe"), 500)


def test_another_address_of_the_images_is_passed_on(monkeypatch, cifar):
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1:1/mirror"):
        main(SuiteConfig("recipe", data_dir=str(cifar.path.parent / "none"), data_url="http://127.0.0.1:1/mirror"))
    [job, *_] = plan(SuiteConfig("recipe", data_url="http://127.0.0.1:1/mirror"), 49_000)
    assert job.config.data_url == "http://127.0.0.1:1/mirror"
    assert "--data-url" not in plan(SuiteConfig("recipe"), 49_000)[0].flags


def test_a_flag_that_cannot_work_is_named_before_anything_runs(suite, monkeypatch):
    monkeypatch.setitem(SUITES, "recipe", TWO | {"broken": Experiment(f"{TINY} --num-heads 5")})
    with pytest.raises(UsageError, match=r"^broken: num_heads 5 does not divide embed_dim 24"):
        main(suite)
    assert not suite.folder.exists()


def test_only_the_named_experiments_are_planned_and_a_wrong_name_is_refused(suite):
    assert [job.name for job in plan(replace(suite, only=("longer",), seeds=2), 128)] == ["longer", "longer"]
    with pytest.raises(ValueError, match=r"only must name experiments of recipe \(plain, longer\), got 'shorter'"):
        replace(suite, only=("plain", "shorter"))
    with pytest.raises(ValueError, match="only names no experiment: leave it out"):  # as from an empty shell variable
        replace(suite, only=())


@pytest.mark.parametrize("flags", [{"seeds": 0}, {"parallel": 0}, {"epochs": -1}, {"val_size": -1}])
def test_settings_of_a_suite_have_limits(flags):
    with pytest.raises(ValueError, match=next(iter(flags))):
        SuiteConfig("recipe", **flags)


def test_a_dry_run_prints_each_command_with_its_time_and_leaves_nothing(suite, forked, capsys):
    main(replace(suite, dry_run=True, seeds=2))
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if "measuring" in line] == ["measuring plain", "measuring longer"]
    title, plain, longer, total = out.splitlines()
    assert "4 runs" in title
    assert plain.startswith("plain ")
    assert " 2 x " in plain
    assert "--num-epochs 2" in plain
    assert longer.endswith(f"--num-epochs 4 --output-dir {suite.folder / 'longer' / 'seed-1'}")
    assert total.startswith("All that is left: ")
    assert not suite.folder.exists()


def test_a_stopped_suite_says_how_to_go_on_and_a_dry_run_has_nothing_to_go_on_with():
    assert advice(["run_experiments.py", "recipe", "--dry-run"]) == ""
    python, said = sys.executable, advice(["run_experiments.py", "recipe", "--data-dir", "my images"])
    assert re.search(rf"({python}|{Path(python).name}) run_experiments.py recipe --data-dir 'my images'$", said)
    assert shutil.which(said.split("goes on: ")[1].split()[0]) == python


EPOCHS = 60  # in some five seconds: a run looks once a second whether its suite is gone
DRIVER = """
import sys
sys.path.insert(0, {root!r})
from config_experiments import SUITES, Experiment
SUITES["recipe"] = {{"plain": Experiment({tiny!r} + " --dropout 0.1"), "wide": Experiment({tiny!r} + " --mlp-ratio 5")}}
from training.errors import exit_codes
from run_experiments import SuiteConfig, main
with exit_codes("The same command goes on"):
    flags = dict(epochs={epochs}, max_train_images=256, dataset="digits", val_size=20, output_dir=sys.argv[1])
    main(SuiteConfig("recipe", **flags, parallel=1000))  # both at once, one thread each
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_suite_leaves_a_saved_run_behind_and_the_same_command_ends_as_if_it_had_not_been(
    launcher, tmp_path, number, code
):
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(root=str(ROOT), tiny=TINY, epochs=EPOCHS))
    command = [sys.executable, str(driver), str(tmp_path / "out")]
    folders = [tmp_path / "out" / "recipe" / name / "seed-1" for name in ("plain", "wide")]
    logs = [folder.with_name("seed-1.log") for folder in folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        began = [folder / "training_history.json" for folder in folders]
        wait_until(lambda: process.poll() is not None or all(map(has_an_epoch, began)))
        assert process.poll() is None, process.stderr and process.stderr.read()
        holders = [int((folder / ".lock-owner").read_text().split()[1]) for folder in folders]
        time.sleep(random.random())  # seconds, of some five
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    wait_until(lambda: all(processes().get(holder, "X")[0] in "ZX" for holder in holders))  # the suite's runs end too
    for folder, log in zip(folders, logs, strict=True):
        assert 1 <= len(epochs(folder)) < EPOCHS
        assert f"stopped. saved in {folder}" in log.read_text()
    if number == signal.SIGINT:
        return  # the rest would be the same
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for folder, log in zip(folders, logs, strict=True):
        assert f"done {folder}" in done.stdout
        assert "Resumed" in log.read_text()
        settings = json.loads((folder / "config.json").read_text())["command"][1:]
        flags, name = settings[1 : settings.index("--output-dir")], folder.parent.name
        whole = tmp_path / "whole" / "recipe" / name / "seed-1"
        assert launcher.run("train_vit_cifar10.py", *flags, "--output-dir", whole).code == 0
        assert history_of(folder) == history_of(whole)
    columns = ["run", "seeds", "epochs", "images seen", "best (%)", "last (%)", "test (%)"]
    ended, expected = (
        to_markdown(group([read_run(root / "recipe" / name / "seed-1") for name in ("plain", "wide")]), columns)
        for root in (tmp_path / "out", tmp_path / "whole")
    )
    assert ended == expected


def has_an_epoch(path: Path) -> bool:
    return path.exists() and bool(epochs(path.parent))


def epochs(folder: Path) -> list[float]:
    return history_of(folder)["epoch"]
