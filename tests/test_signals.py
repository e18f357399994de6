"""A first Ctrl-C or SIGTERM waits until the run asks for it, a second one does not, and afterwards all is as before."""

import os
import signal

import pytest

from training.errors import RunError, Terminated
from training.signals import DeferredSignals, StopRequested

EXITS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
HANDLED = [*EXITS, signal.SIGHUP]
NOTE = "\nstopping after this step; Ctrl-C once more stops at once, without saving\n"


@pytest.fixture(autouse=True)
def handlers_of_before():
    """The handlers are the test run's own again, whatever the test did; SIGTERM does not end it."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM came through"))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers() -> list:
    return [signal.getsignal(number) for number in HANDLED]


@pytest.mark.parametrize("number", EXITS)
def test_a_first_signal_waits_for_the_check_and_says_so(number, capfd):
    with DeferredSignals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        assert capfd.readouterr() == ("", NOTE)
        for _ in range(2):  # it is not forgotten
            with pytest.raises(StopRequested) as caught:
                signals.check()
            assert caught.value.as_exit is EXITS[number]


@pytest.mark.parametrize("first", EXITS)
@pytest.mark.parametrize("second", EXITS)
def test_a_second_signal_acts_at_once(first, second, capfd):
    with DeferredSignals():
        os.kill(os.getpid(), first)
        with pytest.raises(EXITS[second]):
            os.kill(os.getpid(), second)
    assert capfd.readouterr() == ("", NOTE)


@pytest.mark.parametrize("number", EXITS)
def test_an_ignored_signal_stays_ignored_and_the_other_is_deferred(number, capfd):
    signal.signal(number, signal.SIG_IGN)
    with DeferredSignals() as signals:
        for _ in range(2):
            os.kill(os.getpid(), number)
        signals.check()
        assert capfd.readouterr() == ("", "")
        [other] = EXITS.keys() - {number}
        os.kill(os.getpid(), other)
        with pytest.raises(StopRequested):
            signals.check()
    assert signal.getsignal(number) is signal.SIG_IGN


def test_the_handlers_are_put_back_however_it_ends():
    before = handlers()
    with DeferredSignals():
        assert not set(before) & set(handlers())
    assert handlers() == before
    with pytest.raises(ZeroDivisionError), DeferredSignals():
        raise ZeroDivisionError
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_came_before_does_not_stop_what_begins_anew():
    signals = DeferredSignals()
    with signals:
        os.kill(os.getpid(), signal.SIGINT)
    with signals:
        signals.check()


def fail(number: int, error: Exception) -> None:
    """A run that gets a signal, or none for 0, and then an error."""
    with DeferredSignals():
        if number:
            os.kill(os.getpid(), number)
        raise error


@pytest.mark.parametrize("number", EXITS)
def test_an_error_that_the_signal_led_to_is_said_and_ends_the_run_by_the_signal(number, capsys):
    before = handlers()
    with pytest.raises(EXITS[number]):
        fail(number, RuntimeError("the compiler ended"))
    assert handlers() == before
    assert capsys.readouterr().err == "failed while stopping: the compiler ended\n"


def test_an_error_without_a_signal_and_one_of_the_user_stay_what_they_are():
    with pytest.raises(RuntimeError, match="of torch"):
        fail(0, RuntimeError("of torch"))
    with pytest.raises(RunError, match="disk is full"):
        fail(signal.SIGINT, RunError("the disk is full"))


def test_after_restore_a_signal_acts_at_once_and_one_that_came_before_is_known(capfd):
    with DeferredSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        signals.restore()
        assert signals.came() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_has_ended_the_reader_of_standard_error_too_is_still_deferred():
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    os.close(reader)
    try:
        with DeferredSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.write(2, b"now to nowhere")
            with pytest.raises(StopRequested):
                signals.check()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)


def test_under_torchrun_the_note_promises_no_second_interrupt(monkeypatch, capfd):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with DeferredSignals():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr() == ("", "\nstopping after this step\n")


@pytest.mark.parametrize("lost", [(), (1,), (2,), (1, 2)])
def test_a_lost_terminal_waits_for_the_check_however_often_it_is_told_and_silences_what_is_lost(lost, tmp_path):
    """SIGHUP comes from the kernel and from the shell. /dev/full, like a lost terminal, takes no byte."""
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        for stream in kept:
            place = os.open("/dev/full" if stream in lost else tmp_path / str(stream), os.O_WRONLY | os.O_CREAT)
            os.dup2(place, stream)
            os.close(place)
        with DeferredSignals() as signals:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
            for stream in kept:
                os.write(stream, b"goes on")
            with pytest.raises(StopRequested) as caught:
                signals.check()
    finally:
        for stream, saved in kept.items():
            os.dup2(saved, stream)
            os.close(saved)
    assert caught.value.as_exit is Terminated
    for stream in kept.keys() - set(lost):
        assert (tmp_path / str(stream)).read_text().endswith("goes on")


@pytest.mark.parametrize("number", EXITS)
def test_after_a_lost_terminal_a_first_signal_waits_too_and_a_second_does_not(number):
    """A machine that goes down hangs the terminal up first, and sends SIGTERM then."""
    with DeferredSignals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), number)
        with pytest.raises(StopRequested) as caught:
            signals.check()
        with pytest.raises(EXITS[number]):
            os.kill(os.getpid(), number)
    assert caught.value.as_exit is EXITS[number]
