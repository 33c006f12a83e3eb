"""The child process: what it survives, what it costs, what it says."""

import os
import signal
import sys
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event

import pytest

from study.bench import worker
from study.bench.worker import Worker, WorkerFailed

TIMEOUT = 60


PRELOADED = "colorsys"  # a module that nothing else imports


def add(a, b):
    return a + b


def crash():
    worker.say("the crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    sys.exit(3)


def hang():
    worker.say("the hang")
    time.sleep(1000)


def refuse():
    raise ValueError("x must be  even,\ngot 3")


def raise_end_of_file():
    raise EOFError("the data file is empty")


def unpicklable():
    return lambda: None


def environment(name):
    return os.environ.get(name)


def count_to_three():
    for item in ("one", "two", "three"):
        worker.say(item)


def interrupt(item):
    raise KeyboardInterrupt


@pytest.fixture(params=[None, PRELOADED], ids=["spawned", "forked"])
def child(request):
    with Worker(preload=request.param) as w:
        yield w


def test_result_and_child_kept(child):
    assert child.call(add, 1, 2, timeout=TIMEOUT) == 3
    assert child.call(add, "a", "b", timeout=TIMEOUT) == "ab"
    assert child.generation == 1


@pytest.mark.parametrize(
    ("function", "timeout", "reason", "item"),
    [
        (crash, TIMEOUT, "killed by SIGSEGV", "the crash"),
        (leave, TIMEOUT, "exited with code 3", None),
        (hang, 3, "no answer within 3 s", "the hang"),
    ],
    ids=["crash", "exit", "hang"],
)
def test_lost_child_is_replaced(child, function, timeout, reason, item):
    with pytest.raises(WorkerFailed) as failed:
        child.call(function, timeout=timeout)
    assert (failed.value.reason, failed.value.item) == (reason, item)
    assert child.call(add, 1, 2, timeout=TIMEOUT) == 3
    assert child.generation == 2


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (refuse, "ValueError: x must be even, got 3"),
        (raise_end_of_file, "EOFError: the data file is empty"),
    ],
)
def test_exception_is_told_and_child_kept(child, function, reason):
    with pytest.raises(WorkerFailed) as failed:
        child.call(function, timeout=TIMEOUT)
    assert failed.value.reason == reason
    assert child.call(add, 1, 2, timeout=TIMEOUT) == 3
    assert child.generation == 1


def test_unpicklable_result_is_told(child):
    with pytest.raises(WorkerFailed, match="pickle"):
        child.call(unpicklable, timeout=TIMEOUT)


def loaded():
    return PRELOADED in sys.modules


def test_forked_children_have_what_is_preloaded():
    with Worker(preload=PRELOADED) as forked, Worker() as spawned:
        assert forked.call(loaded, timeout=TIMEOUT)
        assert not spawned.call(loaded, timeout=TIMEOUT)


def test_items_reach_the_parent(child):
    items = []
    child.call(count_to_three, timeout=TIMEOUT, on_item=items.append)
    assert items == ["one", "two", "three"]


def test_environment_is_the_childs_own():
    with Worker({"STUDY_TEST": "child"}) as child:
        assert child.call(environment, "STUDY_TEST", timeout=TIMEOUT) == "child"
    assert "STUDY_TEST" not in os.environ


def test_interrupt_kills_the_child(child):
    with pytest.raises(KeyboardInterrupt):
        child.call(hang, timeout=TIMEOUT, on_item=interrupt)
    assert child._child is None
    assert child.call(add, 1, 2, timeout=TIMEOUT) == 3


def test_end_during_a_call_of_another_thread():
    begun = Event()
    with ThreadPoolExecutor(1) as pool:
        with Worker() as child:
            call = pool.submit(child.call, hang, timeout=TIMEOUT, on_item=lambda _: begun.set())
            assert begun.wait(TIMEOUT)
        assert isinstance(call.exception(TIMEOUT), WorkerFailed)
    with pytest.raises(CancelledError):  # what that thread asks next, no child is begun for
        child.call(hang, timeout=TIMEOUT)
    assert child.generation == 1
