"""What a work takes that is no training: repeated until its time is known."""

import time
from collections.abc import Callable
from dataclasses import replace

from benchmarking.costs import spread
from benchmarking.search import Row
from families import sampler
from families.sampler import ImageRequest, Sampler
from families.sampling import reads_negative_prompt
from utils import devices

LONGEST_WORK = 60.0  # seconds, after which a work is not repeated again


def time_repeatedly(work: Callable[[], object], items: int, repeats: int) -> dict[str, float]:
    """The seconds of each item: `work` does so many at a time, and is repeated, but not for long."""
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < LONGEST_WORK:
        began = time.perf_counter()
        work()
        seconds.append((time.perf_counter() - began) / items)
    return spread(seconds)


def time_generation(loaded: Sampler, prompt: str, at_once: int, repeats: int) -> Row:
    """Seconds per image of so many images at once, without what comes before the first: loading, text encoding."""
    device, settings = loaded.execution.device, loaded.settings
    rows = at_once * (1 + reads_negative_prompt(loaded.family, settings.guidance_scale))
    one = replace(
        loaded,
        batch_size=at_once,
        execution=replace(loaded.execution, batch_size=at_once),
        cores=devices.share_cores(rows) if device.type == "cpu" else None,
    )
    requests = [ImageRequest(prompt, seed) for seed in range(at_once)]
    short = replace(one, settings=replace(settings, steps=2))
    sampler.generate_images(short, requests)
    row: Row = {"batch_size": at_once, "steps": settings.steps}
    if short.batch_size == at_once:  # it is halved where the memory is full
        seconds = time_repeatedly(lambda: sampler.generate_images(one, requests), at_once, repeats)
        row |= {"status": "ok", "why": "", "seconds_per_image": seconds}
    else:
        row |= {"status": "out of memory", "why": "the device's memory is full"}
    return row | {"memory_gib": round(devices.peak_memory_gib(device), 3)}
