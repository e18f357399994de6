"""Runs as users start them: fresh processes, compiled, in bf16, on pictures, with dropout, MixUp and CutMix, killed.

The first of their two epochs has small images, so the model is compiled twice. Each is killed in the middle of an
epoch, alone and under torchrun, and goes on to the bits of one that never was.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from processes import ROOT, SABOTAGED, Command, Result
from runs import EACH_STEP, NEVER, PICTURES, TRAIN, assert_same_run, position

from training.device import why_no_compiling

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
STEPS = 31  # of an epoch: 30 of 8 pictures and one of a single picture; two ranks have twice as many pictures a step
STEPS_OF_TWO = 16
AGENT = -1  # torchrun's own process, in a list of ranks


class Compiled:
    """Starts the same compiled run, by itself or by torchrun, in processes that share what inductor has compiled."""

    def __init__(self, place: Path, pictures: Path, ranks: int):
        self.place, self.ranks = place, ranks
        self.flags = [*PICTURES, f"--batch-size={8 * ranks}", "--data-dir", str(pictures), "--compile"]
        self.flags += ["--num-epochs=2", "--small-images-share=0.5"]  # two graphs
        cache = str(place.parent / "inductor")  # not the user's; one for all runs compiles each graph once
        self.env = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", "TORCHINDUCTOR_CACHE_DIR": cache}
        self.env["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # more are processes that import torch, for seconds each

    @contextmanager
    def started(self, folder: Path, *flags: str, pause_at: int = 0) -> Iterator[Command]:
        """Start the run; every rank pauses in step number `pause_at`, counted from here."""
        pause = ("signal_at", "training.console:TrainProgress.update", pause_at, signal.SIGSTOP)
        script = [SABOTAGED, json.dumps([pause]), ROOT / TRAIN] if pause_at else [ROOT / TRAIN]
        launch = TORCHRUN if self.ranks > 1 else []
        command = Command(self.place, *launch, *script, *self.flags, *flags, "--output-dir", folder, env=self.env)
        try:
            yield command
        finally:
            command.end()

    def run(self, folder: Path, *flags: str) -> Result:
        with self.started(folder, *flags) as command:
            return command.wait()

    def kill(self, folder: Path, victims: list[int], *flags: str, pause_at: int) -> Result:
        """Run it to that step and kill some of its processes there; wait until the others have ended too."""
        with self.started(folder, EACH_STEP, *flags, pause_at=pause_at) as command:
            workers = command.wait_for_pause(self.ranks) | {AGENT: command.process.pid}
            for rank in victims:
                os.kill(workers[rank], signal.SIGKILL)
            for rank in workers.keys() - set(victims):
                os.kill(workers[rank], signal.SIGCONT)
            return command.wait()


def start_compiled(place: Path, pictures: Path, ranks: int) -> tuple[Compiled, Path]:
    compiled, folder = Compiled(place, pictures, ranks), place / "unbroken" / "run"
    result = compiled.run(folder, NEVER)
    assert (result.code, result.err) == (0, "")
    assert "bfloat16" in result.out
    assert "Compile   yes: as asked for" in result.out
    return compiled, folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    problem = why_no_compiling(torch.device("cpu"), torch.bfloat16)
    if "there is no " in problem or "wrong gradients" in problem:
        pytest.skip(problem)
    assert not problem
    return tmp_path_factory.mktemp("compiled")


def test_a_compiled_run_killed_in_mid_epoch_ends_with_the_same_bits(place, pictures, folder, trying):
    (place / "alone").mkdir()
    alone, unbroken = start_compiled(place / "alone", pictures, ranks=1)
    with trying("killed in the middle of an epoch"):
        assert alone.kill(folder, [0], pause_at=STEPS + 5).code == -signal.SIGKILL
        assert position(folder) == (1, 4)
        resumed = alone.run(folder, NEVER, "--resume")
        assert (resumed.code, resumed.err) == (0, "")
        assert "Resumed   after 1 epochs and 4 steps" in resumed.out
        assert_same_run(folder, unbroken)


def test_a_compiled_run_of_two_ranks_killed_three_times_ends_with_the_same_bits(place, pictures, folder, trying):
    """One run suffers all three kills, because two compiled ranks start slowly."""
    (place / "two").mkdir()
    two, unbroken = start_compiled(place / "two", pictures, ranks=2)
    with (
        trying("both ranks and torchrun killed in the middle of an epoch"),
        trying("the first rank killed in the middle of an epoch"),
        trying("the second rank killed in the middle of an epoch"),
    ):
        assert two.kill(folder, [AGENT, 0, 1], pause_at=5).code == -signal.SIGKILL
        assert position(folder) == (0, 4)
        assert two.kill(folder, [0], "--resume", pause_at=STEPS_OF_TWO).code == 1
        assert position(folder) == (1, 3)
        assert two.kill(folder, [1], "--resume", pause_at=8).code == 1
        assert position(folder) == (1, 10)
        resumed = two.run(folder, NEVER, "--resume")
        assert (resumed.code, resumed.err) == (0, "")
        assert "Resumed   after 1 epochs and 10 steps" in resumed.out
        assert_same_run(folder, unbroken)
