"""Work in several processes or threads: results in order, memory flat, no process left when the main one is killed."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from utils.cli import UserError


def available_cores() -> int:
    """The cores that this process may use: fewer than the machine's in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C

    def leave_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)  # kill -9 of the main process can't be announced: a worker would wait for ever

    threading.Thread(target=leave_with_parent, daemon=True).start()


def parallel_map(function: Callable, items: Iterable, workers: int) -> Iterator:
    """`function` over `items`, results in their order. Items are taken as they are needed, so they may be large."""
    if workers == 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the same on every platform, and no lock of a library's thread is copied half-way.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 6 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a worker process was killed, probably for want of memory; use fewer --num_workers") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def thread_map(function: Callable, items: Iterable, workers: int, begin: Callable | None = None) -> Iterator:
    """As parallel_map, in threads: for what lets Python's lock go, as decoding does, beside other work that does.

    `begin` is called in each thread first.
    """
    waiting = deque()
    with ThreadPoolExecutor(workers, initializer=begin) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= max(64, 6 * workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
