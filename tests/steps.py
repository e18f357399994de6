"""What train_one_epoch tells of its steps to, in tests of it alone: a training run has training/run.py's."""

from collections.abc import Callable

from training.engine import EpochSums


class Steps:
    """The sums of an epoch; calls `after_sync` after each sync, and syncs at every `sync_every`th step."""

    def __init__(
        self, sums: EpochSums | None = None, after_sync: Callable[[], object] = lambda: None, sync_every: int = 1
    ):
        self.sums, self.call, self.sync_every = sums or EpochSums(), after_sync, sync_every

    def sync_due(self, step: int) -> bool:
        return step % self.sync_every == 0

    def after_sync(self) -> None:
        self.call()
