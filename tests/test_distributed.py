"""Several processes train what one would: agreement, bits, signals, and what is left when one of them dies.

The processes are real; starting two takes seconds, so that tests share runs.
"""

import contextlib
import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from config_vit_cifar10 import ViTConfig
from train_vit_cifar10 import estimate_work
from training import checkpoint, distributed
from training.errors import PeerError, RunError, UsageError, exit_codes
from vit import Dropout, VisionTransformer

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "train_vit_cifar10.py")
PATIENCE = 120  # seconds, for what should take ten
SECONDS_TO_END = 30  # after one of the processes has died
TINY = [
    "--preset=demo", "--warmup-epochs=0", "--depth=1", "--embed-dim=24", "--auto-augment", "--device=cpu",
    "--precision=fp32", "--num-epochs=1", "--learning-rate=0.01",
]  # fmt: skip
# Steps of 15 images divide among neither 2 nor 4 processes, and the 13th has one image. SGD, because AdamW's steps
# hardly tell a gradient from its double.
UNEVEN = [*TINY, "--optimizer=sgd", "--max-train-images=181", "--batch-size=15", "--dropout=0", "--label-smoothing=0.1"]
STEPS = 205  # of an epoch, seven images each
DROPPING = [
    *TINY, "--num-epochs=2", "--max-train-images=1435", "--batch-size=7", "--dropout=0.1", "--save-every=1",
]  # fmt: skip
ENDLESS = [*UNEVEN, "--max-train-images=180", "--num-epochs=100000", "--save-every=100000"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
TIMES = {"epoch_time", "images_per_second"}
FAILED = "error: another process of this run failed; what was saved is kept: go on with --resume\n"


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Run:
    """A command at work, in a session of its own (torchrun's workers too), by which all of its processes are found."""

    def __init__(self, folder: Path, *args: Any):
        self.out, self.err = folder / "out", folder / "err"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, args)], cwd=folder, env=environment, stdout=out, stderr=err,
                start_new_session=True,
            )  # fmt: skip
        self.sessions = {self.process.pid}

    def processes(self, rank: int | None = None) -> list[int]:
        """The process ids of all its processes that are alive, or of those of one rank."""
        others = {}  # pid: parent, session
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, parent, _, session = (path / "stat").read_text().rsplit(") ", 1)[1].split()[:4]
                if state not in "ZX":
                    others[int(path.name)] = int(parent), int(session)
        members = [pid for pid, (_, session) in others.items() if session in self.sessions]
        for pid in members:
            members += [other for other, (parent, _) in others.items() if parent == pid and other not in members]
        self.sessions |= {others[pid][1] for pid in members}
        return [pid for pid in members if rank is None or self.is_of_rank(pid, rank)]

    @staticmethod
    def is_of_rank(pid: int, rank: int) -> bool:
        with contextlib.suppress(OSError):
            return f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False

    def copies(self) -> set[int]:
        """The process ids of the command's copies of itself, which have no RANK in the environment they began with."""

        def command(pid: int) -> bytes:
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/cmdline").read_bytes()
            return b""

        def alike() -> set[int]:
            others = set(self.processes()) - {self.process.pid}
            return {pid for pid in others if command(pid) == command(self.process.pid) != b""}

        before = alike()
        time.sleep(0.02)  # in which any other program that it starts has become that program
        return before & alike()

    def wait_until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"it never came; {self.out.read_text()}{self.err.read_text()}"
            time.sleep(0.002)
        return value

    def wait_for(self, text: str) -> None:
        """Until it has said that."""
        self.wait_until(lambda: text in self.out.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.err.read_text()

    def wait(self, seconds: float = PATIENCE) -> Result:
        """Its end, and that of all its processes."""
        end = time.monotonic() + seconds
        self.process.wait(seconds)
        self.wait_until(lambda: not self.processes(), max(1, end - time.monotonic()))
        return Result(self.process.returncode, self.out.read_text(), self.err.read_text())

    def end(self) -> None:
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


@contextlib.contextmanager
def running(folder: Path, *args: Any) -> Iterator[Run]:
    """A run that is over, whatever happens, at the end."""
    folder.mkdir(exist_ok=True)
    run = Run(folder, *args)
    try:
        yield run
    finally:
        run.end()


def train(folder: Path, *args: Any) -> Result:
    with running(folder, SCRIPT, "--output-dir=run", *args) as run:
        return run.wait()


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> dict[int, tuple[Path, Result]]:
    """The same short run of 1, 2 and 4 processes."""
    folders = {number: tmp_path_factory.mktemp(f"{number}-processes") for number in (1, 2, 4)}
    return {number: (f / "run", train(f, *UNEVEN, f"--num-processes={number}")) for number, f in folders.items()}


@pytest.fixture(scope="module")
def dropping(tmp_path_factory) -> Path:
    """A run of two processes with dropout, not stopped."""
    folder = tmp_path_factory.mktemp("dropping")
    result = train(folder, *DROPPING, "--num-processes=2")
    assert (result.code, result.err) == (0, "")
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, Result]:
    """The same, stopped in its first epoch by SIGTERM to the process that was started."""
    folder = tmp_path_factory.mktemp("stopped")
    with running(folder, SCRIPT, "--output-dir=run", *DROPPING, "--num-processes=2") as run:
        run.wait_for(f"Batch [100/{STEPS}]")
        run.process.terminate()
        return folder / "run", run.wait(SECONDS_TO_END)


def history_of(folder: Path) -> dict[str, list[float]]:
    records = json.loads((folder / "training_history.json").read_text())
    return {name: values for name, values in records.items() if name not in TIMES}


def assert_same_bits(folder: Path, other: Path) -> None:
    assert history_of(folder) == history_of(other)
    for name in ("last.pth", "final_model.pth", "best_model.pth", "checkpoint_epoch_1.pth"):
        saved, expected = checkpoint.load(folder / name), checkpoint.load(other / name)
        assert saved["epoch"] == expected["epoch"]
        for key in {"model", "optimizer", "random_states"} & expected.keys():
            torch.testing.assert_close(saved[key], expected[key], rtol=0, atol=0, msg=f"{key} in {name}")


@pytest.mark.parametrize("number", [2, 4])
def test_several_processes_come_to_the_weights_and_figures_of_one(uneven, number):
    """Within what sums in another order make of fp32: 1e-5 of the weights' change, 1e-5 in the losses."""
    (one, _), (several, _) = uneven[1], uneven[number]
    weights, expected = (checkpoint.load(folder / "last.pth")["model"] for folder in (several, one))
    torch.manual_seed(42)
    untrained = VisionTransformer(**checkpoint.load(one / "last.pth")["model_args"]).state_dict()
    for name, start in untrained.items():
        change = (expected[name] - start).norm()
        assert (weights[name] - expected[name]).norm() < 1e-5 * change + 1e-7, name
    records, expected_records = history_of(several), history_of(one)
    assert records.keys() == expected_records.keys()
    for name, values in expected_records.items():
        exact = name.endswith("acc") or name in ("epoch", "lr")  # each of the 181 and 360 images counts once
        assert records[name] == (values if exact else pytest.approx(values, rel=1e-5)), name


@pytest.mark.parametrize("number", [1, 2, 4])
def test_each_line_is_said_once_and_each_file_is_there_once(uneven, number):
    folder, result = uneven[number]
    assert result.code == 0
    for line in ("Model  ", "Epoch [1/1]", "Epoch Summary:", "Train Loss:", "Test Loss:", "Best test accuracy:"):
        assert result.out.count(line) == 1, line
    assert ("processes of" in result.out) == (number > 1)
    assert {path.name for path in folder.iterdir()} == {path.name for path in uneven[1][0].iterdir()}
    assert checkpoint.load(folder / "last.pth")["machine"]["world_size"] == number


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_run_that_goes_well_says_nothing_on_stderr(uneven, number):
    assert uneven[number][1].err == ""


def test_a_stopped_run_of_two_processes_goes_on_to_the_bits_of_one_that_was_not(dropping, stopped, tmp_path):
    folder, result = stopped
    assert result.code == 143
    assert re.fullmatch(
        r"\nstopping after this step.*\n\nstopped\. saved in run\. Go on with: .* --resume\n", result.err
    )
    at_stop = checkpoint.load(folder / "last.pth")
    assert at_stop["epoch"] == 0
    assert 100 <= at_stop["epoch_sums"]["step"] < STEPS
    resumed = shutil.copytree(folder, tmp_path / "run")
    result = train(tmp_path, *DROPPING, "--num-processes=2", "--resume")
    assert (result.code, result.err) == (0, "")
    assert_same_bits(resumed, dropping)


def test_each_process_draws_dropout_from_a_seed_of_its_own(dropping):
    seeds = []
    for state in checkpoint.load(dropping / "last.pth")["random_states"]:
        generator = torch.Generator()
        generator.set_state(state["cpu"])
        seeds.append(generator.initial_seed())
    assert seeds[0] == 42
    assert len(set(seeds)) == 2


def test_seed_dropout_leaves_rank_0_as_it_is_and_gives_each_other_its_own_mask(monkeypatch):
    masks = []
    for seed in (42, 43):
        for rank in range(4):
            monkeypatch.setenv("RANK", str(rank))
            torch.manual_seed(seed)
            expected = torch.get_rng_state()
            distributed.seed_dropout(seed)
            assert torch.equal(torch.get_rng_state(), expected) == (rank == 0)
            masks.append(tuple((Dropout(0.5)(torch.ones(64)) == 0).tolist()))
    assert len(set(masks)) == 8


def test_torchrun_starts_the_run_anew_after_a_worker_died_and_it_ends_with_the_same_bits(dropping, tmp_path):
    flags = [SCRIPT, *DROPPING, "--output-dir=run", "--save-minutes=1e-9"]
    with running(tmp_path, *TORCHRUN, *flags) as run:
        run.wait_for(f"Batch [100/{STEPS}]")
        [worker] = run.processes(rank=1)
        os.kill(worker, signal.SIGKILL)
        result = run.wait()
    assert result.code == 0, result.err
    [(epochs, steps)] = re.findall(r"Resumed   after (\d) epochs and (\d+) steps", result.out)
    assert (int(epochs), int(steps)) >= (0, 99)
    assert result.out.count("Model  ") == 2
    assert_same_bits(tmp_path / "run", dropping)


def train_with(folder: Path, change: str, *args: Any) -> Result:
    """What the training script does after a change to training/distributed.py, a line of Python."""
    script = folder / "train.py"
    script.write_text(
        f"import multiprocessing, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from train_vit_cifar10 import ViTConfig, VisionTransformer, distributed, main, parse_training_command\n"
        "if __name__ == '__mp_main__':\n"
        "    print('started anew', file=sys.stderr)\n"
        "if __name__ == '__main__':\n"
        f"    {change}\n"
        "    main(parse_training_command(ViTConfig, '').config, VisionTransformer, False, False, False)\n"
    )
    with running(folder, script, "--output-dir=run", *args) as run:
        return run.wait()


def test_a_process_started_anew_does_what_a_copy_does(dropping, tmp_path):
    """As on macOS, where a process that has threads can't be copied."""
    spawn = "distributed.process_context = lambda device: multiprocessing.get_context('spawn')"
    result = train_with(tmp_path, spawn, *DROPPING, "--num-processes=2")
    assert (result.code, result.err) == (0, "started anew\n")
    assert_same_bits(tmp_path / "run", dropping)


def test_two_processes_of_two_threads_each(tmp_path):
    """A copy of a process that OpenMP has given threads to would wait for them for ever."""
    change = "import torch; torch.set_num_threads(2); distributed.num_cpus = lambda: 4"
    result = train_with(tmp_path, change, *UNEVEN, "--num-processes=2")
    assert (result.code, result.err) == (0, "")
    assert "2 threads" in result.out


@pytest.mark.parametrize(
    ("system", "device", "gpu", "method"),
    [
        ("linux", "cpu", False, "fork"),
        ("linux", "cpu", True, "spawn"),
        ("linux", "cuda", True, "spawn"),
        ("darwin", "cpu", False, "spawn"),
    ],
)
def test_a_process_is_copied_on_linux_and_where_there_is_no_gpu(monkeypatch, system, device, gpu, method):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    assert distributed.process_context(torch.device(device)).get_start_method() == method


def test_no_process_is_left_where_they_could_not_be_connected(tmp_path):
    result = train_with(tmp_path, "distributed.TCPStore = None", *UNEVEN, "--num-processes=2")
    assert result.code == 1
    assert "TypeError" in result.err
    assert not (tmp_path / "run").exists()


def test_going_on_with_another_number_of_processes_warns(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    result = train(tmp_path, *DROPPING, "--num-processes=1", "--resume")
    assert result.code == 0, result.err
    assert re.search(r"^WARNING: the bits may differ .*world_size 2 before, 1 now", result.err)
    assert history_of(tmp_path / "run")["epoch"] == [1, 2]


def children() -> list[str]:
    """The processes that this one has started and not waited for."""
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return sorted("".join((task / "children").read_text() for task in tasks).split())


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_others_end_and_nothing_is_left_running(tmp_path, victim):
    with running(tmp_path, SCRIPT, *ENDLESS, "--output-dir=run", "--num-processes=2") as run:
        run.wait_for("Epoch [2/")
        [child] = run.wait_until(run.copies)
        os.kill(child if victim else run.process.pid, signal.SIGKILL)
        result = run.wait(SECONDS_TO_END)
    if victim:
        assert (result.code, result.err) == (1, FAILED)
    else:
        assert (result.code, result.err) == (-signal.SIGKILL, "")  # nobody is left to say why
    assert checkpoint.load(tmp_path / "run" / "last.pth")["epoch"] >= 1


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_before_they_are_connected_the_other_does_not_wait(tmp_path, victim):
    with running(tmp_path, SCRIPT, *ENDLESS, "--output-dir=run", "--num-processes=2") as run:
        [child] = run.wait_until(run.copies)
        os.kill(child if victim else run.process.pid, signal.SIGKILL)
        result = run.wait(SECONDS_TO_END)
    if victim:
        early = "error: another process of this run ended before the run began: start it again\n"
        assert (result.code, result.err) == (1, early)


def test_a_mistake_that_all_processes_find_is_said_once(tmp_path):
    result = train(tmp_path, *TINY, "--num-processes=2", "--max-train-images=1438")
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: max_train_images.*\n", result.err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "code"), [([], 2), (["--resume", "--seed=7"], 2), (["--overwrite", "--dataset=image-folder"], 1)]
)
def test_what_the_first_process_refuses_leaves_no_process_behind(uneven, tmp_path, monkeypatch, capfd, flags, code):
    """In this process: its children would be left here."""
    before = {path.name: path.read_bytes() for path in uneven[2][0].iterdir()}
    arguments = [*UNEVEN, "--num-processes=2", f"--data-dir={tmp_path}", f"--output-dir={uneven[2][0]}", *flags]
    number_of_threads, children_before = torch.get_num_threads(), children()
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(SCRIPT, run_name="__main__")
    torch.set_num_threads(number_of_threads)
    assert stop.value.code == code
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: .*\n", err)
    assert children() == children_before
    assert "RANK" not in os.environ
    assert {path.name: path.read_bytes() for path in uneven[2][0].iterdir()} == before


@pytest.mark.parametrize(
    ("device", "work", "cpus", "batch_size", "number"),
    [
        ("cpu", 1e14, 2, 64, 2),
        ("cpu", 0.99e14, 2, 64, 1),
        ("cuda", 1e20, 8, 1024, 1),
        ("mps", 1e20, 8, 1024, 1),
        ("cpu", 1e20, 1, 64, 1),
        ("cpu", 1e20, 2, 63, 1),
        ("cpu", 1e20, 2, 1, 1),
        ("cpu", 1e20, 64, 1024, 2),
    ],
)
def test_auto_takes_two_processes_for_long_work_on_a_cpu_with_cores_and_images_for_them(
    monkeypatch, device, work, cpus, batch_size, number
):
    monkeypatch.setattr(distributed, "num_cpus", lambda: cpus)
    assert distributed.choose_num_processes(batch_size, work, torch.device(device)) == number


def test_the_recipe_is_long_work_and_a_tiny_run_is_not():
    tiny = ViTConfig(dataset="digits", img_size=16, embed_dim=24, depth=1, num_epochs=1, warmup_epochs=0)
    assert (
        estimate_work(tiny, VisionTransformer) < distributed.LONG_WORK < estimate_work(ViTConfig(), VisionTransformer)
    )
    one = estimate_work(ViTConfig(num_epochs=10), VisionTransformer)
    assert estimate_work(ViTConfig(num_epochs=20), VisionTransformer) == 2 * one
    assert estimate_work(ViTConfig(num_epochs=10, max_train_images=5000), VisionTransformer) == one / 10


@pytest.mark.parametrize(
    ("rank", "error", "said"),
    [
        (0, RunError, "error: why\n"), (0, PeerError, "error: why\n"), (0, UsageError, "error: why\n"),
        (2, RunError, "process 2: error: why\n"), (2, PeerError, ""), (2, UsageError, ""),
    ],
)  # fmt: skip
def test_what_rank_0_says_too_no_other_says(monkeypatch, capsys, rank, error, said):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # to be put back

    def fail() -> None:
        print("progress")
        raise error("why")

    with pytest.raises(SystemExit) as stop, exit_codes():
        fail()
    assert stop.value.code == error.exit_code
    assert capsys.readouterr() == ("" if rank else "progress\n", said)


def test_alone_nothing_is_spread_or_sent():
    model, sums = nn.Linear(2, 2), torch.tensor([1.0, math.nan])
    assert distributed.spread(model, torch.device("cpu")) is model
    assert distributed.add_up(sums) is sums
    assert (distributed.broadcast("a"), distributed.gather("a"), distributed.highest(3)) == ("a", ["a"], 3)
    assert not torch.distributed.is_initialized()
