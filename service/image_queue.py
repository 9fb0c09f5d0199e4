"""Requests that wait for images: those of the same settings are made in one batch, by one thread."""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from families.sampler import GeneratedImage, ImageRequest, Sampling
from service.errors import ApiError, internal_error, stopping_error
from service.measures import Measures
from utils.cli import counted
from utils.devices import use_torch_threads

logger = logging.getLogger(__name__)
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What images share that are made in one batch."""

    sampling: Sampling
    loras: tuple[tuple[str, float], ...] = ()  # names, with their weights


Make = Callable[[Settings, list[ImageRequest], OnStep], list[GeneratedImage]]


class Progress(NamedTuple):
    """Of the batch that is made now: one or more images of the request are in it."""

    step: int
    steps: int


class Made(NamedTuple):
    number: int  # of the request's images, from 0
    image: GeneratedImage


class Job:
    """A request for images. What becomes of it is read from `events`, in the event loop that it was made in."""

    def __init__(self, settings: Settings, requests: list[ImageRequest]):
        self.settings, self.requests = settings, requests
        self.is_cancelled = False
        self.events: asyncio.Queue[Progress | Made | ApiError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def tell(self, event: Progress | Made | ApiError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waits
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Item(NamedTuple):
    job: Job
    number: int


class _AllCancelled(Exception):
    pass


@dataclass(frozen=True)
class QueueLimits:
    batch_size: int
    most_waiting: int  # images
    batch_wait: float  # seconds for which a batch that is not full waits for others of its settings


class ImageQueue:
    """Makes what waits, the oldest first, together with all that has the same settings."""

    def __init__(self, make: Make, limits: QueueLimits, measures: Measures):
        self._make, self._limits, self._measures = make, limits, measures
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._seconds_per_image = 1.0
        self._torch_threads = torch.get_num_threads()
        measures.watch("images_waiting", lambda: len(self._waiting))
        self._thread = threading.Thread(target=self._work, name="images", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, job: Job) -> int:
        """Let a request wait; how many images are before its own. Refused where too many wait."""
        with self._changed:
            ahead, count = len(self._waiting), len(job.requests)
            if self._is_closed:
                raise stopping_error()
            if ahead + count > self._limits.most_waiting:
                after = min(60, math.ceil(max(1.0, ahead * self._seconds_per_image)))
                what = f"{counted(ahead, 'image')} already wait, and at most {self._limits.most_waiting} may"
                raise ApiError(429, f"{what}; try again in {after} s", "queue_full", None, after)
            self._waiting.extend(Item(job, number) for number in range(count))
            self._changed.notify_all()
            return ahead

    def cancel(self, job: Job) -> None:
        """Nobody waits for this request any more; of a finished one nothing is left to cancel."""
        job.is_cancelled = True
        with self._changed:
            kept = [item for item in self._waiting if item.job is not job]
            self._measures.count("images_cancelled_total", len(self._waiting) - len(kept))
            self._waiting = deque(kept)

    def close(self) -> None:
        """Take no more requests, and answer those that wait; what is being made is finished."""
        with self._changed:
            self._is_closed = True
            jobs = {item.job for item in self._waiting}
            self._waiting.clear()
            self._changed.notify_all()
        for job in jobs:
            job.tell(stopping_error())

    def _work(self) -> None:
        use_torch_threads(self._torch_threads)
        while items := self._take_batch():
            try:
                self._make_batch(items)
            except _AllCancelled:
                self._measures.count("images_cancelled_total", len(items))
            except Exception as error:
                logger.exception("%s failed", counted(len(items), "image"))
                for job in {item.job for item in items}:
                    job.tell(error if isinstance(error, ApiError) else internal_error())

    def _take_batch(self) -> list[Item]:
        """The oldest image that waits, and others of its settings; empty once the queue is closed."""
        with self._changed:
            found: list[Item] = []
            while not found and not self._is_closed:  # what waited may be cancelled before its batch is full
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                self._changed.wait_for(self._is_batch_full, self._limits.batch_wait)
                found = self._first_alike()
            taken = {id(item) for item in found}
            self._waiting = deque(item for item in self._waiting if id(item) not in taken)
            return found

    def _is_batch_full(self) -> bool:
        return self._is_closed or len(self._first_alike()) == self._limits.batch_size

    def _first_alike(self) -> list[Item]:
        if not self._waiting:
            return []
        settings = self._waiting[0].job.settings
        return [item for item in self._waiting if item.job.settings == settings][: self._limits.batch_size]

    def _make_batch(self, items: list[Item]) -> None:
        jobs = {item.job: None for item in items}  # in order
        furthest = 0

        def on_step(step: int, steps: int) -> None:
            nonlocal furthest
            if all(job.is_cancelled for job in jobs):
                raise _AllCancelled
            if step > furthest:  # several threads report, of a part of the images each
                furthest = step
                for job in jobs:
                    job.tell(Progress(step, steps))

        began = time.perf_counter()
        made = self._make(items[0].job.settings, [item.job.requests[item.number] for item in items], on_step)
        seconds = time.perf_counter() - began
        self._seconds_per_image = 0.7 * self._seconds_per_image + 0.3 * seconds / len(items)
        for name, amount in (
            ("images_total", len(items)),
            ("image_batches_total", 1),
            ("image_seconds_total", seconds),
        ):
            self._measures.count(name, amount)
        for item, image in zip(items, made):
            item.job.tell(Made(item.number, image))
