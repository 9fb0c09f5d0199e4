"""From records to ImageSets: every image measured and encoded, from the cache or computed and added to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from evaluation.feature_cache import content_keys
from evaluation.features import Encoder, image_features
from evaluation.image_measures import is_readable, measure_images
from evaluation.image_sets import ImageSet, Record


@dataclass(frozen=True)
class Work:
    """Where and how images are encoded."""

    cache: Path
    batch_size: int
    workers: int


def encode_set(records: list[Record], keys: list[str], encoders: Sequence[Encoder], work: Work) -> ImageSet:
    """Measures of all images, features of those that can be read."""
    files = [one["path"] for one in records]
    measures = measure_images(files, work.cache, work.workers, keys)
    good = np.flatnonzero(is_readable(measures))
    files, good_keys = [files[i] for i in good], [keys[i] for i in good]
    features = {
        encoder.name: image_features(encoder, files, work.cache, work.batch_size, work.workers, good_keys)
        for encoder in encoders
    }
    return ImageSet(records, keys, measures, features)


def encode_sets(
    sets: Mapping[str, list[Record]], encoders: Sequence[Encoder], work: Work, accelerator: Accelerator
) -> dict[str, ImageSet]:
    """The sets by name. Several processes encode a share each; the first then reads all of them from the cache.

    The other processes get none.
    """
    work.cache.mkdir(parents=True, exist_ok=True)
    rank, count = accelerator.process_index, accelerator.num_processes
    keys = {name: content_keys([one["path"] for one in records], work.workers) for name, records in sets.items()}
    if count > 1:
        for name, records in sets.items():
            share = slice(rank, None, count)
            if records[share]:
                encode_set(records[share], keys[name][share], encoders, work)
        accelerator.wait_for_everyone()
    accelerator.end_training()  # the others need not wait for what the first process does alone
    if rank:
        return {}
    return {name: encode_set(records, keys[name], encoders, work) for name, records in sets.items()}
