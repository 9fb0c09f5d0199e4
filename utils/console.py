"""What scripts show of their work: tables and progress, on a terminal by rich, in a file as plain lines."""

import contextlib
import functools
import io
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")
EVERY = 10  # seconds between two lines of progress in a file
NUMBER = re.compile(r"[-−+]?[\d.,]+( ?%)?|")


@functools.lru_cache(4)
def _open_console(stream: TextIO) -> Console:
    """Colours and wrapped lines on a terminal alone; in a notebook plain lines too."""
    on_terminal = stream.isatty()
    width = None if on_terminal else 10_000
    return Console(file=stream, force_terminal=on_terminal, force_jupyter=False, width=width)


def open_console(stream: TextIO) -> Console:
    """The console of a stream, the same one each time, also while a bar stands between them."""
    return _open_console(getattr(stream, "rich_proxied_file", stream))


# Tables


Rows = Iterable[Sequence[object]]


def make_table(rows: Rows, headers: Sequence[str] = (), label: int = 0) -> Table:
    """Columns of numbers are set to the right; the first is at least `label` wide, as in other tables beside it."""
    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(box=None, show_header=bool(headers), pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, column in enumerate(zip(*cells)):
        is_numeric = any(column) and all(map(NUMBER.fullmatch, column))
        side: Literal["left", "right"] = "right" if is_numeric else "left"
        table.add_column(Text(headers[i] if headers else ""), justify=side, min_width=None if i else label)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def format_table(rows: Rows, headers: Sequence[str] = (), label: int = 0) -> str:
    """The table as plain lines, none of them wrapped."""
    text = io.StringIO()
    _open_console.__wrapped__(text).print(make_table(rows, headers, label))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def print_table(rows: Rows, headers: Sequence[str] = (), label: int = 0) -> None:
    """To stdout; long cells wrap within their column on a terminal."""
    if sys.stdout.isatty():
        open_console(sys.stdout).print(make_table(rows, headers, label))
    else:
        print(format_table(rows, headers, label), flush=True)


# Progress


@dataclass
class Bar:
    """Work of `total` units, `done` of them, and how long the rest takes. `draw` shows it."""

    total: int
    unit: str
    doing: str
    done: int
    draw: Callable[["Bar"], None]
    note: str = ""
    later: float = 0.0  # seconds of other work that will come, such as validations
    aside: float = 0.0  # seconds that other work took; they say nothing of the rate
    marks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=100))

    def __post_init__(self) -> None:
        self._mark()

    def _mark(self) -> None:
        now = time.monotonic() - self.aside
        if len(self.marks) > 1 and now - self.marks[-2][0] < 0.2:  # so that the marks span at least 20 seconds
            self.marks.pop()
        self.marks.append((now, self.done))

    def update(self, number: int = 1) -> None:
        self.done += number
        self._mark()
        self.draw(self)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While other work is done, which does not count for the rate."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.aside += time.monotonic() - began

    @property
    def rate(self) -> float:
        """Units a second, of late; 0 before the first."""
        (began, first), (now, last) = self.marks[0], self.marks[-1]
        return (last - first) / (now - began) if now > began else 0.0

    def __str__(self) -> str:
        """`training: 120/300 steps (40 %), 3.2 steps/s, 1:02 left, loss 0.11`."""
        parts = [f"{self.done:,}/{self.total:,} {self.unit} ({100 * self.done // max(1, self.total)} %)"]
        if rate := self.rate:
            parts.append(f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            if left := self.total - self.done:
                parts.append(f"{format_seconds(left / rate + self.later)} left")
        text = ", ".join([*parts, *([self.note] if self.note else [])])
        return f"{self.doing}: {text}" if self.doing else text


def format_seconds(seconds: float) -> str:
    """`1:02`, `2:03:04`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextlib.contextmanager
def show_progress(total: int, unit: str, doing: str = "", done: int = 0, shown: bool = True) -> Iterator[Bar]:
    """Show a bar with the time left on stderr.

    In a file, and on a terminal that can't move its cursor, a line every ten seconds and at the end.
    """
    if not shown:
        yield Bar(total, unit, doing, done, lambda bar: None)
    elif sys.stderr.isatty() and not open_console(sys.stderr).is_dumb_terminal:
        columns = BarColumn(24), TextColumn("{task.description}", markup=False)
        console = open_console(sys.stderr)
        # What is printed meanwhile goes above the bar, but for a stdout that leads elsewhere.
        with Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty(), refresh_per_second=5) as progress:
            task = progress.add_task(doing, total=total, completed=done)
            bar = Bar(
                total, unit, doing, done, lambda bar: progress.update(task, completed=bar.done, description=str(bar))
            )
            bar.draw(bar)
            yield bar
    else:
        yield from _print_progress(total, unit, doing, done)


def _print_progress(total: int, unit: str, doing: str, done: int) -> Iterator[Bar]:
    last, shown = time.monotonic(), -1

    def draw(bar: Bar, now: bool = False) -> None:
        nonlocal last, shown
        if bar.done != shown and (now or time.monotonic() - last > EVERY):
            last, shown = time.monotonic(), bar.done
            print(bar, file=sys.stderr, flush=True)

    bar = Bar(total, unit, doing, done, draw)
    try:
        yield bar
    finally:
        draw(bar, now=True)


def track(items: Iterable[Item], total: int, unit: str, doing: str = "", shown: bool = True) -> Iterator[Item]:
    """The items, with a bar that counts those that are done."""
    with show_progress(total, unit, doing, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()


def last_words(log: str) -> str:
    """The last line of what a command printed that speaks of an error, or else that says something.

    Where accelerate's launcher started it, more lines follow that of the error.
    """
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if re.search(r"\w", line)]
    errors = [line for line in lines[-40:] if "error: " in line.lower()]
    return [*lines, *errors][-1] if lines else ""
