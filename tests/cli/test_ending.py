import os
import signal
import threading
from contextlib import suppress

import pytest

from protocaffe.cli.ending import Terminated, orderly_ends, raise_if_ended


def send(number):
    os.kill(os.getpid(), number)


def be_ended(number, *then):
    with orderly_ends():
        try:
            send(number)
        finally:
            for step in then:
                step()


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request):
    """A signal that nobody has made the tests ignore (as nohup does)."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_cleans_up(number):
    steps = []
    with pytest.raises(Terminated) as caught:
        be_ended(number, lambda: steps.append("cleaned up"))
    assert steps == ["cleaned up"]
    assert caught.value.number == number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_was_lost_is_raised_again():
    def lose_the_first():
        with suppress(Terminated):
            send(signal.SIGTERM)
        raise_if_ended()

    with pytest.raises(Terminated), orderly_ends():
        lose_the_first()
    raise_if_ended()  # is over now


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
