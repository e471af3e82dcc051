"""Interleaving, and calls in child processes: results, errors, and ends of every kind."""
from __future__ import annotations

import itertools
import os
import signal
from functools import partial

import pytest

from benchmarks.timing import DoesNotFit, Worker, in_child, interleave, time_together
from ppsr2q.core.errors import UserError


def variable(name):
    return os.environ.get(name)


def complain(kind):
    raise kind("of the child")


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def forever():
    signal.pause()


def countdown(start):
    """A call that fails when it is made for the ``start``-th time."""
    calls = itertools.count(1)

    def call():
        if next(calls) == start:
            raise UserError(f"call {start}")
    return call


def nothing():
    return int


def end_when_called():
    return end


def test_calls_take_turns_after_one_that_is_not_measured():
    order = []
    samples = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in samples.items()} == {"a": 2, "b": 2}


def test_slow_calls_are_made_once():
    order = []
    samples = interleave({"a": lambda: order.append("a"), "slow": lambda: order.append("slow")}, 2, once=["slow"])
    assert order == ["a", "a", "slow", "a"]
    assert len(samples["slow"]) == 1


def test_result_and_environment_of_a_child(monkeypatch):
    monkeypatch.setenv("TAKEN_AWAY", "1")
    assert in_child(variable, "GIVEN", environment={"GIVEN": "2"}) == "2"
    assert in_child(variable, "TAKEN_AWAY", environment={"TAKEN_AWAY": None}) is None
    assert "GIVEN" not in os.environ and os.environ["TAKEN_AWAY"] == "1"


@pytest.mark.parametrize("kind, raised, message", [
    (UserError, UserError, "of the child"), (ValueError, RuntimeError, "ValueError: of the child"),
    (MemoryError, DoesNotFit, "needs more memory")])
def test_errors_reach_the_parent(kind, raised, message):
    with pytest.raises(raised, match=message):
        in_child(complain, kind)
    with pytest.raises(raised, match=message):
        Worker(complain, kind)


def test_a_child_that_ends_or_does_not():
    with pytest.raises(DoesNotFit, match="SIGKILL"):
        in_child(end)
    with pytest.raises(DoesNotFit, match="more than 1 s"):
        in_child(forever, seconds=1)
    with pytest.raises(DoesNotFit, match="SIGKILL"):
        Worker(end)


def test_a_worker_makes_its_call_again_and_again():
    worker = Worker(countdown, 3)
    worker(), worker()
    with pytest.raises(UserError, match="call 3"):
        worker()


def test_processes_that_do_not_fit_beside_each_other_are_skipped():
    found = time_together({"a": partial(Worker, nothing), "b": partial(Worker, nothing)}, 2)
    assert {name: len(figures["samples"]) for name, figures in found.items()} == {"a": 2, "b": 2}
    found = time_together({"a": partial(Worker, nothing), "b": partial(Worker, end_when_called)}, 2)
    assert found == dict.fromkeys("ab", {"skipped": "beside the others: its process ended with SIGKILL"})
