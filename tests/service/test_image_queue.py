"""The queue of images, with a model that makes none: batches, cancelled requests, the end of its time."""

import asyncio
import threading
import time

import pytest
import torch
from PIL import Image

from families.sampler import GeneratedImage, ImageRequest, Sampling
from service.errors import ApiError
from service.image_queue import ImageQueue, Job, Made, Progress, QueueLimits, Settings
from service.measures import Measures
from utils.devices import use_torch_threads

SETTINGS = Settings(Sampling(4, 7.5, 64))
WAIT = 5  # seconds for what should come at once


class FakeModel:
    """Makes grey images; `hold` keeps it in the middle of a batch."""

    def __init__(self):
        self.sizes, self.threads, self.hold, self.began = [], [], threading.Event(), threading.Event()
        self.hold.set()

    def make(self, settings, requests, on_step):
        self.sizes.append(len(requests))
        self.threads.append(torch.get_num_threads())
        self.began.set()
        assert self.hold.wait(WAIT)
        if requests[0].prompt == "fails":
            raise ZeroDivisionError
        on_step(1, 4)
        return [GeneratedImage(Image.new("L", (1, 1), one.seed), True) for one in requests]


def job_of(count: int, prompt: str = "boots", settings: Settings = SETTINGS) -> Job:
    return Job(settings, [ImageRequest(prompt, seed) for seed in range(count)])


def make_queue(model: FakeModel, batch_size: int = 4, most: int = 8, batch_wait: float = 0.0) -> ImageQueue:
    return ImageQueue(model.make, QueueLimits(batch_size, most, batch_wait), Measures())


async def outcome(job: Job) -> list[int] | ApiError:
    """The numbers of the images that were made, or the error."""
    made = []
    while len(made) < len(job.requests):
        event = await asyncio.wait_for(job.events.get(), WAIT)
        if isinstance(event, ApiError):
            return event
        if isinstance(event, Made):
            made.append(event.number)
        else:
            assert event == Progress(1, 4)
    return made


def test_a_batch_whose_requests_leave_while_it_waits_for_more_does_not_end_the_queue():
    async def ask():
        model = FakeModel()
        queue = make_queue(model, batch_wait=0.002)
        for _ in range(300):
            job = job_of(1)
            queue.submit(job)
            queue.cancel(job)
            await asyncio.sleep(0.001)
        job = job_of(2)
        queue.submit(job)
        assert await outcome(job) == [0, 1] and queue.is_alive
        queue.close()

    asyncio.run(ask())


def test_what_waits_with_the_same_settings_is_made_in_one_batch():
    async def ask():
        model = FakeModel()
        model.hold.clear()
        queue = make_queue(model)
        other = Settings(Sampling(9, 7.5, 64))
        jobs = [job_of(1), job_of(2), job_of(1, settings=other), job_of(1)]
        for job in jobs:
            queue.submit(job)
            assert model.began.wait(WAIT)  # the first one is being made
        model.hold.set()
        assert [await outcome(job) for job in jobs] == [[0], [0, 1], [0], [0]]
        assert model.sizes == [1, 3, 1]
        queue.close()

    asyncio.run(ask())


def test_a_batch_that_fails_is_an_error_of_its_requests_alone():
    async def ask():
        queue = make_queue(FakeModel())
        bad, good = job_of(1, "fails", Settings(Sampling(9, 7.5, 64))), job_of(1)
        for job in (bad, good):
            queue.submit(job)
        assert (await outcome(bad)).status == 500 and await outcome(good) == [0]
        queue.close()

    asyncio.run(ask())


def test_a_stop_answers_those_who_wait_and_finishes_what_is_being_made():
    async def ask():
        model = FakeModel()
        model.hold.clear()
        queue = make_queue(model, batch_size=1)
        made, waits = job_of(1), job_of(1)
        queue.submit(made)
        assert model.began.wait(WAIT)
        queue.submit(waits)
        queue.close()
        assert (await outcome(waits)).code == "stopping"
        with pytest.raises(ApiError, match="stopping"):
            queue.submit(job_of(1))
        model.hold.set()
        assert await outcome(made) == [0]
        end = time.monotonic() + WAIT
        while queue.is_alive and time.monotonic() < end:
            time.sleep(0.01)
        assert not queue.is_alive

    asyncio.run(ask())


def test_more_images_than_may_wait_are_refused_with_a_time_to_come_back():
    async def ask():
        model = FakeModel()
        model.hold.clear()
        queue = make_queue(model, batch_size=1, most=3)
        queue.submit(job_of(1))
        assert model.began.wait(WAIT)
        assert queue.submit(job_of(2)) == 0
        with pytest.raises(ApiError, match="2 images already wait, and at most 3 may") as error:
            queue.submit(job_of(2))
        assert error.value.status == 429 and 1 <= error.value.retry_after <= 60
        queue.close()
        model.hold.set()

    asyncio.run(ask())


@pytest.mark.parametrize("is_first", [True, False])
def test_threads_that_speak_with_one_core_leave_the_images_theirs(is_first):
    async def ask():
        model, before = FakeModel(), torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            speaking = threading.Thread(target=use_torch_threads, args=(1,))
            if is_first:
                speaking.start()
                speaking.join()
            queue = make_queue(model)
            if not is_first:
                speaking.start()
                speaking.join()
            job = job_of(1)
            queue.submit(job)
            assert await outcome(job) == [0] and model.threads == [3]
            queue.close()
        finally:
            torch.set_num_threads(before)

    asyncio.run(ask())
