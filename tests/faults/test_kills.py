"""A run that is killed at any moment, again and again, resumes and ends with the bits of one that never was."""

import random
import signal

import pytest
from conftest import KILLS
from runs import OFTEN, TRAIN, assert_same_run, can_resume


def chains(kills: int) -> list[int]:
    """Return how often each run is killed: 1, 2, 3, 4, 5, 1, 2, ... times, `kills` in all."""
    lengths = []
    while left := kills - sum(lengths):
        lengths.append(min(left, len(lengths) % 5 + 1))
    return lengths


@pytest.mark.parametrize(
    ("setting", "seed", "kills"),
    [
        *(("on_digits", seed, kills) for seed, kills in enumerate(chains(KILLS - KILLS // 2))),
        *(("on_pictures", seed, kills) for seed, kills in enumerate(chains(KILLS // 2))),
    ],
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    request, launcher, folder, trying, setting, seed, kills
):
    undisturbed = request.getfixturevalue(setting)
    rng, moments = random.Random(seed), []

    def start():
        resume = ["--resume"] * can_resume(folder)
        return launcher.start(TRAIN, *undisturbed.flags, OFTEN, "--output-dir", folder, *resume)

    with trying("killed at a random moment", kills, undisturbed.setting):
        for _ in range(kills):
            moment, code = rng.uniform(0, undisturbed.seconds), 0
            while code == 0:
                run = start()
                if not run.ends_within(moment):
                    run.send(signal.SIGKILL)
                code, _, err = run.wait()
                moments.append(moment)
                moment /= 2  # it had less than that left to do
            assert code == -signal.SIGKILL, (seed, moments, err)
        result = start().wait()
        assert result.code == 0, (seed, moments, result.err)
        assert_same_run(folder, undisturbed.folder)
