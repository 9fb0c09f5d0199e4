"""Work in several processes or threads: results in order, constant memory, no process that outlives the main one."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from utils.cli import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """What `work` returns in the main process, in all of them. Its error, printed once, ends them all with one code."""
    from accelerate.utils import broadcast_object_list  # here: check_environment.py must work without it

    shared: list[Any] = [None, False]
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            shared[0] = work()
        except (UserError, OSError) as caught:
            error, shared[1] = caught, True
    broadcast_object_list(shared)
    if shared[1]:
        raise error or SystemExit(1)
    return shared[0]


def available_cores() -> int:
    """The number of cores that this process may use, which in a container or a batch job are not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


ENDS_WITH_STDIN = "ENDS_WITH_STDIN"  # of the environment: who started this holds its standard input open, and lives


def end_with_launcher() -> None:
    """End as by SIGTERM once the launcher is gone: nobody else would end this.

    That is torchrun (of `accelerate launch`), or with ENDS_WITH_STDIN whoever started that.
    """
    launcher = os.getppid()

    def wait_for_parent() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)

    def end_after(wait: Callable[[], object]) -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=end_after, args=[wait_for_parent], daemon=True).start()
    if ENDS_WITH_STDIN in os.environ:
        threading.Thread(target=end_after, args=[lambda: os.read(0, 1)], daemon=True).start()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C

    def exit_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # after kill -9 of the main process nothing else would end this worker

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


def _result_of(pool: ProcessPoolExecutor, future: Future[Result]) -> Result:
    """The future's result; BrokenProcessPool where a worker was killed, also in the middle of sending a result.

    The pool's own thread would wait for the rest of that result as long as any process can write to their pipe.
    """
    while not wait([future], timeout=0.5).done:
        if any(process.exitcode for process in list(pool._processes.values())):
            _kill_workers(pool)
            pool._result_queue._writer.close()  # type: ignore[attr-defined]
    return future.result()


def _results_in_order(
    pool: Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    most_waiting: int,
    result_of: Callable[[Future[Result]], Result] = Future.result,
) -> Iterator[Result]:
    """Results in the order of the items. An item is taken only when it is needed, so that items may be large."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most_waiting:
            yield result_of(waiting.popleft())
    while waiting:
        yield result_of(waiting.popleft())


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of each item, in order, computed in `workers` processes (1: in this one)."""
    if workers == 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the same on every platform, and no lock of a library's thread is copied while it is held.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C while a worker still imports the script
    try:
        for _ in range(workers):
            pool.submit(int)  # starts a worker, which inherits that
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield from _results_in_order(pool, function, items, 6 * workers, functools.partial(_result_of, pool))
    except BrokenProcessPool:
        raise UserError("a worker process was killed, probably for lack of memory; use fewer --num_workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def other_process() -> Iterator[Callable[..., Any]]:
    """A function that calls another one, with its arguments, in a process of its own: the same one each time.

    What those hold of the device's memory is free again after the block.
    """
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start_worker)

    def call(function: Callable[..., Result], *values: Any) -> Result:
        try:
            return _result_of(pool, pool.submit(function, *values))
        except BrokenProcessPool:
            raise UserError("a process was killed, probably for lack of memory") from None

    try:
        yield call
    finally:
        _kill_workers(pool)  # its work is of no use any more, as after Ctrl-C
        pool.shutdown(wait=True, cancel_futures=True)


def thread_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, begin: Callable[[], object] | None = None
) -> Iterator[Result]:
    """As parallel_map, in threads: for functions that release Python's lock, such as decoding an image.

    `begin` is called first in each thread.
    """
    pool = ThreadPoolExecutor(workers, initializer=begin)
    try:
        yield from _results_in_order(pool, function, items, max(64, 6 * workers))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
