"""Work in several processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from utils.cli import UserError
from utils.parallel import other_process, parallel_map

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from utils.parallel import parallel_map

if __name__ == "__mp_main__":
    time.sleep(1)  # as long as the imports of a script take, in each worker
if __name__ == "__main__":
    try:
        print(list(parallel_map(abs, range(-9, 0), 2)))
    except KeyboardInterrupt:
        print("stopped")
"""


def square(value: int) -> int:
    return value * value


def fail(value: int) -> int:
    raise ValueError(f"item {value}")


def be_killed_while_sending(value: int) -> bytes:
    main = threading.main_thread().ident

    def kill() -> None:
        while sys._current_frames()[main].f_code.co_name != "_send":
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    return bytes(100_000_000)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers):
    assert list(parallel_map(square, range(50), workers)) == [value * value for value in range(50)]


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for value in range(200):
            taken.append(value)
            yield value

    results = parallel_map(square, items(), 2)
    assert next(results) == 0 and len(taken) < 20
    results.close()


def test_a_failure_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match="item 0"):
        list(parallel_map(fail, range(3), 2))


def test_a_worker_that_is_killed_while_it_sends_a_result_is_reported():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(parallel_map(be_killed_while_sending, range(3), 2))
    with pytest.raises(UserError, match="a process was killed"), other_process() as call:
        call(be_killed_while_sending, 0)


def test_ctrl_c_while_workers_start_prints_no_traceback(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py")]
    process = subprocess.Popen(words, stdout=-1, stderr=-1, text=True, start_new_session=True)
    while len(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True).stdout.split()) < 3:
        assert process.poll() is None
        time.sleep(0.02)  # the two workers and the process that tracks their resources
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=60) == ("stopped\n", "")
