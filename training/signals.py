"""Ctrl-C, SIGTERM and the loss of the terminal during a run: it finishes its step and saves before it ends."""

import os
import signal
import sys
from types import FrameType
from typing import Any, Self

from training import distributed
from training.errors import Terminated, first_line

NOTE = "\nstopping after this step; Ctrl-C once more stops at once, without saving\n"
NOTE_UNDER_TORCHRUN = "\nstopping after this step\n"


class StopRequested(Exception):
    """A signal asked the run to stop; `as_exit` is the exception that it would have been."""

    def __init__(self, as_exit: type[BaseException]):
        self.as_exit = as_exit


class DeferredSignals:
    """Inside `with`, a first signal waits until `check` is called; a second one acts at once.

    SIGHUP, of a terminal or connection that is gone, comes from the kernel and the shell both: it always waits.
    The signal may also have ended a compiler, or another process of the run. The RuntimeError that this leads to is
    printed in one line, and the run ends by the signal.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    pending = 0  # the number of a signal that came

    def __enter__(self) -> Self:
        self.pending = 0
        self.previous: dict[int, Any] = {}
        for number in self.signals:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup, or for a script's background process
                self.previous[number] = signal.signal(number, self.note)
        return self

    def restore(self) -> None:
        """Let signals act at once again."""
        while self.previous:
            signal.signal(*self.previous.popitem())

    def __exit__(self, _, error: BaseException | None, __) -> None:
        self.restore()
        if self.pending and isinstance(error, RuntimeError):
            print(f"failed while stopping: {first_line(error)}", file=sys.stderr)
            raise self.exit_of(self.pending) from error

    def note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            silence_lost_terminal()
        elif self.pending in (signal.SIGINT, signal.SIGTERM) and not distributed.under_torchrun():
            raise self.exit_of(number)  # torchrun sends again what the terminal has sent; SIGHUP was nobody's wish
        if not self.pending and distributed.rank() == 0:
            note = NOTE_UNDER_TORCHRUN if distributed.under_torchrun() else NOTE
            try:
                os.write(2, note.encode())  # a signal comes at any time, in the middle of a print too
            except OSError:  # Ctrl-C has ended the reader too, as in `2>&1 | tee log`
                silence_lost_terminal()
        self.pending = number

    def came(self) -> int:
        """The number of the signal that came to any rank, or 0. A collective call: all ranks make it."""
        return distributed.max_over_ranks(self.pending)

    def check(self) -> None:
        """StopRequested if a signal came to any rank. A collective call: all ranks make it."""
        if number := self.came():
            raise StopRequested(self.exit_of(number))

    @staticmethod
    def exit_of(number: int) -> type[BaseException]:
        return KeyboardInterrupt if number == signal.SIGINT else Terminated


def silence_lost_terminal() -> None:
    """Let standard output and standard error go nowhere where nobody reads them any more; a file goes on."""
    for stream in (1, 2):
        try:
            os.write(stream, b"\n")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
