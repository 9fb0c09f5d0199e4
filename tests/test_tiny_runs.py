"""The helpers of tests that start several processes."""

import multiprocessing
import sys
import time

from tests.tiny_runs import end_together


def test_where_one_process_fails_the_others_do_not_wait_for_it():
    context = multiprocessing.get_context("fork")
    began = time.monotonic()
    processes = [context.Process(target=time.sleep, args=[60]), context.Process(target=sys.exit, args=[3])]
    for one in processes:
        one.start()
    end_together(processes, 500)
    assert [one.exitcode for one in processes] == [-9, 3] and time.monotonic() - began < 30
