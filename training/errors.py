"""Errors that the user can mend, and exit codes: 0 done, 2 bad usage, 1 anything else, 130 Ctrl-C, 143 SIGTERM."""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator

GENTLER = "a lower --learning-rate (with muon, --muon-learning-rate too) or --clip-grad-norm 1"  # after a loss of NaN


class RunError(Exception):
    """The message says what is wrong, where, and what the user can do. Ends the program with exit code 1."""

    exit_code = 1


class UsageError(RunError):
    """A flag, or a combination of flags, that can't work. Ends the program with exit code 2."""

    exit_code = 2


class PeerError(RunError):
    """Another process of the run failed. That process says why."""


class Terminated(BaseException):
    """SIGTERM arrived."""


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or the name of its type where the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that the memory is used up, the computer's or the device's."""
    no_room = isinstance(error, RuntimeError) and re.search("out of memory|can't allocate memory", str(error))
    return isinstance(error, MemoryError) or bool(no_room)


def interrupt_behind(error: BaseException | None) -> BaseException | None:
    """The Ctrl-C or SIGTERM that led to the error: torch's writer and modules in C make an error of their own of it."""
    while error and not isinstance(error, KeyboardInterrupt | Terminated | RunError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None if isinstance(error, RunError) else error


def end_at_interrupt() -> None:
    """Until exit_codes, let Ctrl-C end the process at once, without a traceback; not where it is ignored (nohup)."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def exit_codes(advice: str = "") -> Iterator[None]:
    """Run a script's main in it: an error is one line on stderr and an exit code, an interrupt also prints `advice`."""

    def on_sigterm(signum, frame):
        raise Terminated

    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # else files would get the numbers that `>&-` closed
        pass
    os.close(descriptor)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ✓ shows ?
    rank = int(os.environ.get("RANK", 0))  # of several processes that share the work, see training/distributed.py
    first_here = int(os.environ.get("LOCAL_RANK", rank)) == 0  # of those on this machine
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 until the end
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # by end_at_interrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
    previous = signal.signal(signal.SIGTERM, on_sigterm)

    def complain(text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk
            print(f"{f'process {rank}: ' if rank else ''}error: {text}", file=sys.stderr)

    try:
        try:
            yield
        except Exception as error:
            if stop := interrupt_behind(error):
                raise stop from None
            raise
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the run is ending
    except RunError as error:
        if first_here or not isinstance(error, PeerError | UsageError):  # these one process says for all of a machine
            complain(str(error))
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(f"out of memory ({first_line(error)}). Smaller batches, images or models need less")
        sys.exit(1)
    except BrokenPipeError:  # the reader of the output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (KeyboardInterrupt, Terminated) as stop:
        if not rank:
            with contextlib.suppress(OSError):
                print(f"\nstopped. {str(stop) or advice}".rstrip(), file=sys.stderr)
        sys.exit(130 if isinstance(stop, KeyboardInterrupt) else 143)
    finally:
        signal.signal(signal.SIGTERM, previous)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a full disk: Python would end with 120, because it could not write the rest either
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
