import os
import signal
import threading

import pytest

from protocaffe.cli.ending import Terminated, orderly_ends


def send(number):
    os.kill(os.getpid(), number)


def be_ended_twice(number, steps):
    with orderly_ends():
        try:
            send(number)
        finally:
            send(number)
            steps.append("cleaned up")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_waits_for_the_cleaning_up(number):
    steps = []
    with pytest.raises(Terminated) as caught:
        be_ended_twice(number, steps)
    assert steps == ["cleaned up"]
    assert caught.value.number == number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with orderly_ends():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_set_no_handlers():
    seen = []

    def run():
        with orderly_ends():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
