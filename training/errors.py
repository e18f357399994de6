"""Errors that are the user's to mend, and exit codes: 0 done, 2 bad usage, 1 anything else, 130 Ctrl-C, 143 SIGTERM."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator


class RunError(Exception):
    """Something the user can mend: the message says what, where and what to do. Ends the program with exit code 1."""

    exit_code = 1


class UsageError(RunError):
    """A flag, or a combination of them, that makes no sense here. Ends the program with exit code 2."""

    exit_code = 2


class PeerError(RunError):
    """Another process of the run failed, and says why itself."""


class Terminated(BaseException):
    """SIGTERM arrived."""


def first_line(error: BaseException) -> str:
    """Of what it says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def exit_codes(advice: str = "") -> Iterator[None]:
    """Run a script's main: a user's mistake becomes one line on stderr, an interrupt an exit code and `advice`."""

    def on_sigterm(signum, frame):
        raise Terminated

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ✓ shows ? and goes on
    rank = int(os.environ.get("RANK", 0))  # of several processes that share the work, see training/distributed.py
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 until the end
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # which the scripts choose while they import torch
        signal.signal(signal.SIGINT, signal.default_int_handler)
    previous = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run ends already
    except RunError as error:
        if not (rank and isinstance(error, PeerError | UsageError)):  # which rank 0 says
            print(f"{f'process {rank}: ' if rank else ''}error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # what read the output is gone, as behind `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (KeyboardInterrupt, Terminated) as stop:
        if not rank:
            print(f"\nstopped. {str(stop) or advice}".rstrip(), file=sys.stderr)
        sys.exit(130 if isinstance(stop, KeyboardInterrupt) else 143)
    finally:
        signal.signal(signal.SIGTERM, previous)
