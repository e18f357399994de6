"""Run a suite of experiments, one training after the other or side by side, and print their table.

    python run_experiments.py recipe --dry-run                              # the plan, and the time that it takes
    python run_experiments.py recipe --epochs 10 --max-train-images 10000 --seeds 3 --parallel 2
    python run_experiments.py ladder --dataset image-folder --data-dir DIR  # on other images

config_experiments.py has the suites. Each run is a folder, OUTPUT_DIR/SUITE/NAME/seed-N, made by the ordinary training
script, with its console beside it in seed-N.log. The same command goes on where an earlier one stopped: finished runs
are kept, interrupted ones resumed. `--parallel 2` gives each of two runs half of the cores, or OMP_NUM_THREADS of them.
"""

if __name__ == "__main__":  # Ctrl-C while torch is being imported ends the script without a traceback
    from training.errors import end_at_interrupt

    end_at_interrupt()

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from tqdm import tqdm

from config_experiments import RESNET, SUITES, Experiment
from config_vit_cifar10 import DatasetName, TrainConfig, ViTConfig
from evaluation.comparable import same_means
from resnet import ResNet18
from train_resnet_cifar10 import ResNetConfig
from training.cli import parse, parse_training_command
from training.console import counted, format_time, say
from training.data import Dataset, channel_stats, load_dataset
from training.distributed import num_cpus
from training.errors import RunError, UsageError, exit_codes
from training.files import create_folder
from training.history import read_object
from training.job import LOOK_EVERY, Job, what_counts
from training.provenance import count_flops, python_command
from vit import VisionTransformer

BAR = "{percentage:3.0f}% of the suite, {remaining} left | {desc}"


@dataclass(frozen=True)
class SuiteConfig:
    """Which suite to run, how long, and on which images."""

    suite: tyro.conf.Positional[
        Literal["recipe", "patch-size", "ladder", "leave-one-out", "data-efficiency", "presets"]
    ]
    """the experiments, listed in config_experiments.py"""
    only: tuple[str, ...] | None = None
    """names of the suite's experiments, to run only these"""
    epochs: int = 0
    """epochs of an experiment whose multiple is 1; 0: as many as its own settings say"""
    max_train_images: int = 0
    """training images of an experiment whose share is 1; 0: all"""
    seeds: int = 1
    """run each experiment with the seeds 1, 2, ... up to this one"""
    parallel: int = 1
    """runs side by side, each with its share of the cores, or with OMP_NUM_THREADS threads"""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """train nothing: measure each experiment's speed for a moment, print the plan and its time"""
    dataset: DatasetName = "cifar10"
    """images to learn from"""
    data_dir: str = "data"
    """folder that the images are read from, and downloaded to"""
    data_url: str = ""
    """web address of a folder with the official files, or of CIFAR's archive; empty: the official address"""
    val_size: int = 1000
    """hold out this many training images to choose the best epoch on, which alone is tested; 0: on the test images"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """arithmetic of every run; auto differs between machines, and each precision has a row of its own in the table"""
    output_dir: str = "checkpoints/experiments"
    """folder for the folders of the suites"""

    def __post_init__(self):
        for name, lowest in {"epochs": 0, "max_train_images": 0, "seeds": 1, "parallel": 1, "val_size": 0}.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.only == ():  # as from an empty variable of a shell
            raise ValueError("only names no experiment: leave it out to run the whole suite")
        if unknown := [name for name in self.only or () if name not in SUITES[self.suite]]:
            names = ", ".join(SUITES[self.suite])
            raise ValueError(f"only must name experiments of {self.suite} ({names}), got {unknown[0]!r}")

    @property
    def experiments(self) -> dict[str, Experiment]:
        """The suite, or what --only names of it."""
        suite = SUITES[self.suite]
        return {name: suite[name] for name in suite if not self.only or name in self.only}

    @property
    def folder(self) -> Path:
        return Path(self.output_dir) / self.suite

    @property
    def threads(self) -> int:
        """Threads of each run: its share of the cores, or OMP_NUM_THREADS."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdecimal() and int(given) else max(1, num_cpus() // self.parallel)


def main(config: SuiteConfig) -> None:
    """Plan the suite, run what is not finished, print the table."""
    # downloaded now, before several runs want it
    dataset = load_dataset(config.dataset, config.data_dir, 32, config.data_url)
    num_images, num_classes = len(dataset.train_images) - config.val_size, len(dataset.class_names)
    if config.val_size and not num_classes <= config.val_size <= len(dataset.train_images) - num_classes:
        most = len(dataset.train_images) - num_classes
        raise UsageError(f"--val-size must be 0 or between {num_classes} and {most} here, got {config.val_size}")
    num_used = min(num_images, config.max_train_images or num_images)  # of an experiment whose share is 1
    jobs = plan(config, num_used)
    mean = channel_stats(dataset.train_images)[0]
    todo = [job for job in jobs if not job.is_finished()]  # refuses other settings first
    if others := [str(job.folder) for job in jobs if has_other_images(job, dataset, mean)]:
        raise UsageError(f"{others[0]} holds a run of other images than {config.data_dir}: choose another --output-dir")
    print(f"{config.suite}: {len(jobs)} runs in {config.folder}, {len(jobs) - len(todo)} of them finished", flush=True)
    if config.dry_run:
        print_plan(config, jobs, todo, num_images, len(dataset.test_images))
        return
    create_folder(config.folder)
    failed, problems = run(config, todo, num_images), []
    before = [job for job in finished_before(config, jobs, num_used) if not has_other_images(job, dataset, mean)]
    in_turn = sorted([*jobs, *before], key=lambda job: (list(SUITES[config.suite]).index(job.name), job.config.seed))
    table, curves = config.folder / "table.md", config.folder / "curves.png"
    for path in (table, curves):
        path.unlink(missing_ok=True)  # of an earlier command
    if folders := [job.folder for job in in_turn if job not in failed]:
        files = ["--markdown", table, "--output", curves]
        compare = [sys.executable, Path(__file__).with_name("compare_runs.py"), *folders, *files]
        if subprocess.run(compare, check=False).returncode:
            problems.append("not all finished runs are in the table: see the error above")
    if failed:
        folders = ", ".join(str(job.folder) for job in failed)
        again = "The same command tries them again, each from its last save; remove a folder to begin it anew"
        problems.insert(0, f"{len(failed)} of {len(jobs)} runs failed: {folders}. {again}")
    if problems:
        raise RunError("; ".join(problems))


def plan(config: SuiteConfig, num_used: int) -> list[Job]:
    """All runs of the suite, the seeds of an experiment one after the other. UsageError names what can't work."""
    jobs = [
        create_job(config, name, experiment, seed, num_used)
        for name, experiment in config.experiments.items()
        for seed in range(1, config.seeds + 1)
    ]
    names: dict[tuple[Any, ...], str] = {}
    for job in jobs:
        like = names.setdefault(experiment_of(job, num_used), job.name)
        if like != job.name:
            raise UsageError(f"{like} and {job.name} come to the same settings: give more epochs or training images")
    return jobs


def experiment_of(job: Job, num_used: int) -> tuple[Any, ...]:
    """What tells the job from those of other experiments."""
    settings = what_counts(job.config)
    settings["max_train_images"] = settings["max_train_images"] or num_used
    return job.script, *((name, value) for name, value in settings.items() if name != "seed")


def finished_before(config: SuiteConfig, jobs: list[Job], num_used: int) -> list[Job]:
    """Other experiments and seeds of the suite than those of `jobs`, finished by earlier commands like this one."""
    names = {experiment_of(job, num_used): job.name for job in jobs}
    found = []
    for name, experiment in SUITES[config.suite].items():
        for folder in (config.folder / name).glob("seed-*"):
            seed = folder.name.removeprefix("seed-")
            if seed.isdecimal() and (name not in config.experiments or int(seed) > config.seeds):
                with suppress(UsageError):  # its settings are others, or not possible with these flags
                    job = create_job(config, name, experiment, int(seed), num_used)
                    if job.is_finished() and names.setdefault(experiment_of(job, num_used), name) == name:
                        found.append(job)
    return found


def create_job(config: SuiteConfig, name: str, experiment: Experiment, seed: int, num_used: int) -> Job:
    """The run of an experiment; an experiment with all images has `num_used`."""
    script, *flags = shlex.split(experiment.command)
    flags += ["--dataset", config.dataset, "--data-dir", config.data_dir, "--val-size", str(config.val_size)]
    flags += [*(["--data-url", config.data_url] if config.data_url else []), "--seed", str(seed)]
    flags += ["--precision", config.precision] if config.precision != "auto" else []
    if experiment.images != 1 or config.max_train_images:
        flags += ["--max-train-images", str(max(1, round(experiment.images * num_used)))]
    try:
        settings = settings_of(script, flags)
        if experiment.epochs != 1 or config.epochs:
            epochs = experiment.epochs * (config.epochs or settings.num_epochs)
            single = settings_of(script, [*flags, "--num-epochs", str(config.epochs or settings.num_epochs)])
            flags += ["--num-epochs", str(max(1, round(epochs)))]
            settings = settings_of(script, flags)
            warmup = single.warmup * settings.num_epochs / single.num_epochs  # as large a share of the other run
            if settings.warmup_epochs == "auto" and settings.warmup != warmup:
                flags += ["--warmup-epochs", f"{warmup:g}"]
                settings = settings_of(script, flags)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    return Job(name, script, flags, settings, config.folder / name / f"seed-{seed}")


def settings_of(script: str, flags: list[str]) -> ViTConfig | ResNetConfig:
    return parse_training_command(ResNetConfig if script == RESNET else ViTConfig, "", flags).config


def has_other_images(job: Job, dataset: Dataset, mean: list[float]) -> bool:
    """Whether the job's folder holds a run of other images than these, with that mean; the settings may not show it."""
    saved = read_object(job.folder / "config.json").get("data")
    if not isinstance(saved, dict) or not saved.keys() >= {"class_names", "mean"}:
        return False
    left = len(dataset.train_images) - job.config.val_size
    here = {
        "class_names": dataset.class_names,
        "num_train_images": min(job.config.max_train_images or left, left),
        "num_test_images": len(dataset.test_images),
    }
    same = all(saved.get(name, value) == value for name, value in here.items())  # early runs did not save all
    return not same or not same_means(saved["mean"], mean)


def run(config: SuiteConfig, todo: list[Job], num_images: int) -> list[Job]:
    """Run the jobs, so many side by side as `parallel` says, and show how far they are. Returns those that failed."""
    waiting, running, failed = list(todo), [], []
    work = {name: work_of(job, num_images) for name, job in {job.name: job for job in todo}.items()}
    shares = {job.folder: job.share_done() for job in todo}
    total, before = sum(work[job.name] for job in todo), sum(work[job.name] * shares[job.folder] for job in todo)
    with stopping(running), tqdm(total=total, initial=before, bar_format=BAR, disable=None) as bar:
        while waiting or running:
            while waiting and len(running) < config.parallel:
                job = waiting.pop(0)
                try:
                    job.start(config.threads)
                    running.append(job)
                    if bar.disable:  # no terminal
                        say(f"begun {job.folder}, its console is {job.log}")
                except RunError as error:
                    failed.append(job)
                    say(f"FAILED {job.name} in {job.folder}: {error}")
            time.sleep(LOOK_EVERY)
            over = [job for job in running if job.ended()]
            shares |= {job.folder: job.share_done() for job in running}
            for job in over:
                running.remove(job)
                if job.failed:
                    failed.append(job)
                say(job.outcome())
            bar.total = sum(work[job.name] * (shares[job.folder] if job in failed else 1.0) for job in todo)
            bar.n = sum(work[job.name] * shares[job.folder] for job in todo)
            bar.set_description_str(
                ", ".join(
                    f"{job.name} {job.folder.name} {job.epochs_done()}/{job.config.num_epochs}" for job in running
                )
            )
    return failed


@contextmanager
def stopping(running: list[Job], number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """At its end, by Ctrl-C or another error too, signal the jobs that still run and wait until they have ended."""
    try:
        yield
    finally:
        for job in running:
            job.stop(number)
        for job in running:
            job.wait()


def passes(config: TrainConfig, num_images: int) -> float:
    """Images of full size that cost as much as the training."""
    return (config.max_train_images or num_images) * config.full_epochs(config.num_epochs)


def work_of(job: Job, num_images: int) -> float:
    """Floating-point operations of the job's training steps."""
    create_model = ResNet18 if job.script == RESNET else VisionTransformer
    return passes(job.config, num_images) * count_flops(create_model, job.config.img_size, **job.config.model_args)


def print_plan(config: SuiteConfig, jobs: list[Job], todo: list[Job], num_images: int, num_test_images: int) -> None:
    """Each experiment with its command and time, and the time of all that is left to do."""
    seconds: dict[str, float] = {}
    for job in jobs:
        if job.name in seconds:
            continue
        left = [other.name for other in todo].count(job.name)
        if left:
            print(f"measuring {job.name}", file=sys.stderr, flush=True)
        beside = min(config.parallel, len(todo))
        seconds[job.name] = measure(config, job, beside, num_images, num_test_images) if left else 0.0
        command = python_command([job.script, *job.flags, "--output-dir", str(job.folder)])
        cost = f"{left} x {format_time(seconds[job.name])}" if left else "finished"
        print(f"{job.name:<24} {cost:<18} {command}", flush=True)
    ends = [0.0] * config.parallel
    for job in todo:  # each begins where a place is free first
        ends[ends.index(min(ends))] += seconds[job.name] * (1 - job.share_done())
    threads = counted(config.threads, "thread")
    print(f"All that is left: {format_time(max(ends))}, {config.parallel} at a time with {threads} each")


def measure(config: SuiteConfig, job: Job, beside: int, num_images: int, num_test_images: int) -> float:
    """The seconds that a run will take, from the first steps of so many of its like `beside` each other."""
    with tempfile.TemporaryDirectory() as temporary:
        copies = [replace(job, folder=Path(temporary, str(i))) for i in range(beside)]
        with stopping(copies, signal.SIGKILL):
            started = time.perf_counter()
            for copy in copies:
                copy.start(config.threads)
            speed = sum(copy.first_speed() for copy in copies) / len(copies)
            begun = time.perf_counter() - started
    speed *= job.config.full_epochs(1)  # as images of full size
    evaluated = job.config.num_epochs * (config.val_size or num_test_images) + (config.val_size and num_test_images)
    return begun + (passes(job.config, num_images) + evaluated / 3) / speed  # the forward pass is a third of a step


def advice(argv: list[str]) -> str:
    """What a stopped suite says: how to go on. A dry run has nothing to go on with."""
    if "--dry-run" in argv:
        return ""
    return f"What was saved before stays. The same command goes on: {python_command(argv)}"


if __name__ == "__main__":
    with exit_codes(advice(sys.argv)):
        main(parse(SuiteConfig, __doc__ or ""))
