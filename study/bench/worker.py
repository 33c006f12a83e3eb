"""Runs functions in a child process, replaced when it crashes, hangs or may have lost the GPU."""

import multiprocessing
import os
import pickle
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from threading import Lock

LONGEST_REASON = 500  # characters
PACKAGES = "study.bench.packages"  # what workers that use a GPU preload

_parent = None  # in a child: the connection to its parent


class WorkerFailed(RuntimeError):
    """A call that gave no result. reason: why; item: what the child last said it had in hand."""

    def __init__(self, reason: str, item: str | None):
        super().__init__(f"{item}: {reason}" if item else reason)
        self.reason = reason
        self.item = item


def say(item: str) -> None:
    """Tell the parent what is in hand. Does nothing outside a worker."""
    if _parent:
        _parent.send(("item", item))


class Worker:
    """A child that lives on between calls, so that imports, CUDA context and caches stay warm.

    env: environment variables of the child, set before it imports more than the standard library,
    or, with `preload`, before it imports more than that.
    preload: the name of a module; children are forked from a server that has imported it once.
    generation: how many children were started so far.
    """

    def __init__(self, env: dict[str, str] | None = None, preload: str | None = None):
        self.env, self.preload = env or {}, preload
        self.generation = 0
        self._child, self._joining, self._ended = None, Lock(), False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ended = True
        self._kill()

    @property
    def alive(self) -> bool:
        """Whether the next call finds a child, and so need not wait for imports."""
        return self._child is not None

    def call(
        self,
        function: Callable,
        *args,
        timeout: float,
        on_item: Callable[[str], None] = lambda item: None,
    ):
        """`function(*args)` in the child; function, args and result must be picklable.

        timeout: seconds, the start of a new child included. on_item: called with each item said.
        Raises WorkerFailed after a crash, a time-out or an exception, CancelledError after the end
        of the `with`, where another thread may not have noticed. Only a child that gave its result,
        or an exception without having used CUDA, serves the next call.
        """
        if self._child is None and not self._ended:
            self._start()
        if self._ended:
            self._kill()
            raise CancelledError("the worker has ended")
        item, keep, deadline = None, False, time.monotonic() + timeout
        child = self._child  # another thread may kill it
        try:
            self._connection.send((function, args))
            while self._connection.poll(max(0, deadline - time.monotonic())):
                kind, value = self._connection.recv()
                if kind == "result":
                    keep = True
                    return value
                if kind == "failed":
                    reason, keep = value
                    break
                item = value
                on_item(item)
            else:
                reason = f"no answer within {timeout:g} s"
        except (EOFError, ConnectionError):
            self._join(child)
            reason = _exit_reason(child.exitcode)
        finally:
            if not keep:
                self._kill()
        raise WorkerFailed(reason, item)

    def _start(self):
        context = multiprocessing.get_context("forkserver" if self.preload else "spawn")
        if self.preload:
            context.set_forkserver_preload([self.preload])
        self._connection, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, self.env))
        self._child.start()
        theirs.close()
        self.generation += 1

    def _kill(self):
        child, self._child = self._child, None  # of two threads one kills it
        if child is None:
            return
        with suppress(ProcessLookupError):  # gone already, or not yet the leader of its group
            os.killpg(child.pid, signal.SIGKILL)
        child.kill()
        self._join(child)  # the connection closes when nobody reads any more: another thread may

    def _join(self, child):
        with self._joining:  # of two threads at once, one would not learn the exit code
            child.join()


@contextmanager
def workers(count: int, *args, **options) -> Iterator[Callable]:
    """Yields `each(function, items)`: function(worker, item) of each item in turn, in parallel.

    count: of workers, each `Worker(*args, **options)`. At an interruption no further item is begun,
    and those in hand are given up.
    """
    free = SimpleQueue()
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(count)
        stack.callback(pool.shutdown)
        for _ in range(count):
            free.put(stack.enter_context(Worker(*args, **options)))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)

        def in_turn(function, item):
            worker = free.get()
            try:
                return function(worker, item)
            finally:
                free.put(worker)

        yield lambda function, items: pool.map(lambda item: in_turn(function, item), items)


def _serve(connection, env):
    global _parent  # noqa: PLW0603
    os.setsid()  # a group of its own: Ctrl-C reaches the parent only, which kills the whole group
    os.environ.update(env)
    _parent = connection
    while True:
        try:
            call = connection.recv_bytes()
        except EOFError:  # the parent is gone
            return
        try:
            function, args = pickle.loads(call)
            connection.send(("result", function(*args)))
        except Exception as error:
            text = textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_REASON)
            connection.send(("failed", (text, not _uses_cuda())))


def _uses_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


def _exit_reason(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
