import os
import signal

import pytest

from protocaffe.cli.signals import SignalRequests
from protocaffe.solvers import Action


def send(number):
    os.kill(os.getpid(), number)


def test_requests_wait_until_asked_for_and_are_answered_once():
    requests = SignalRequests(Action.STOP, Action.SNAPSHOT)
    with requests.listening():
        assert requests.action() is Action.NONE
        send(signal.SIGHUP)
        send(signal.SIGINT)
        assert requests.action() is Action.SNAPSHOT
        assert requests.action() is Action.STOP
        assert requests.action() is Action.NONE


def test_a_second_interrupt_before_the_answer_is_immediate():
    requests = SignalRequests(Action.STOP, Action.SNAPSHOT)
    with requests.listening():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_interrupt_during_the_stop_is_immediate():
    requests = SignalRequests(Action.STOP, Action.SNAPSHOT)
    with requests.listening():
        send(signal.SIGINT)
        assert requests.action() is Action.STOP
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_interrupts_that_snapshot_may_come_again():
    requests = SignalRequests(Action.SNAPSHOT, Action.NONE)
    with requests.listening():
        for _ in range(2):
            send(signal.SIGINT)
            assert requests.action() is Action.SNAPSHOT


def test_signals_without_effect_are_ignored():
    requests = SignalRequests(Action.NONE, Action.NONE)
    with requests.listening():
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGHUP):
            send(number)
        assert requests.action() is Action.NONE


def test_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)
    with SignalRequests(Action.STOP, Action.SNAPSHOT).listening():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGHUP)) == before
