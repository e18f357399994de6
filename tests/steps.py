"""What train_one_epoch tells of its steps to, in tests of it alone: a training run has training/run.py's."""

from collections.abc import Callable

from training.engine import EpochSums


class Steps:
    """The sums of an epoch; calls `between_steps` after each look, and looks at every `look_every`th step."""

    def __init__(
        self, sums: EpochSums | None = None, between_steps: Callable[[], object] = lambda: None, look_every: int = 1
    ):
        self.sums, self.call, self.look_every = sums or EpochSums(), between_steps, look_every

    def look_due(self, step: int) -> bool:
        return step % self.look_every == 0

    def between_steps(self) -> None:
        self.call()
