"""Ctrl-C and SIGTERM while a run is at work: it finishes its step and saves before it leaves."""

import os
import signal
import sys
from types import FrameType
from typing import Any, Self

from training import distributed
from training.errors import Terminated, first_line

NOTE = "\nstopping after this step; Ctrl-C once more stops at once, without saving\n"


class StopRequested(Exception):
    """A signal asked the run to stop; `as_exit` is the exception that it would have been."""

    def __init__(self, as_exit: type[BaseException]):
        self.as_exit = as_exit


class DeferredSignals:
    """Inside `with`, a first Ctrl-C or SIGTERM waits until `check` is called; a second one acts at once.

    Where a RuntimeError comes first, as when the signal has also ended a compiler or another process that is
    waited for, it is printed in one line and the run ends by the signal.
    """

    signals = (signal.SIGINT, signal.SIGTERM)

    def __enter__(self) -> Self:
        self.pending = 0  # the signal's number
        self.previous: dict[int, Any] = {}
        for number in self.signals:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup, or for a script's background process
                self.previous[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.pending and isinstance(error, RuntimeError):
            print(f"failed while stopping: {first_line(error)}", file=sys.stderr)
            raise self.exit_of(self.pending) from error

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.pending and not distributed.under_torchrun():  # which passes on what the terminal has sent already
            raise self.exit_of(number)
        if not self.pending and distributed.rank() == 0:
            os.write(2, NOTE.encode())  # print may be busy: a signal comes at any time
        self.pending = number

    def check(self) -> None:
        """StopRequested if a signal came, to any of the processes of the run; all of them have to ask."""
        number = distributed.highest(self.pending)
        if number:
            raise StopRequested(self.exit_of(number))

    @staticmethod
    def exit_of(number: int) -> type[BaseException]:
        return KeyboardInterrupt if number == signal.SIGINT else Terminated
