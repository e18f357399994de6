"""A run that is killed at any moment, again and again, goes on and ends with the bits of one that never was."""

import random
import signal

import pytest
from conftest import KILLS
from runs import OFTEN, TINY, TRAIN, assert_same_run, can_resume


def chains(kills: int) -> list[int]:
    """How often each run is killed: 1, 2, 3, 4, 5, 1, 2, ... times, `kills` in all."""
    lengths = []
    while left := kills - sum(lengths):
        lengths.append(min(left, len(lengths) % 5 + 1))
    return lengths


@pytest.mark.parametrize(("seed", "kills"), enumerate(chains(KILLS)))
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    launcher, unbroken, seconds, folder, trying, seed, kills
):
    rng, moments = random.Random(seed), []

    def start():
        return launcher.start(TRAIN, *TINY, OFTEN, "--output-dir", folder, *["--resume"] * can_resume(folder))

    with trying("killed at a random moment", kills):
        for _ in range(kills):
            moment, code = rng.uniform(0, seconds), 0
            while code == 0:
                run = start()
                if not run.ends_within(moment):
                    run.send(signal.SIGKILL)
                code, _, err = run.wait()
                moments.append(moment)
                moment /= 2  # where it had less than that left to do
            assert code == -signal.SIGKILL, (seed, moments, err)
        result = start().wait()
        assert result.code == 0, (seed, moments, result.err)
        assert_same_run(folder, unbroken)
