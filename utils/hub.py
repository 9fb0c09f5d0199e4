"""What a library's error means when something of the hub can't be had: one clear line."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.cli import UserError

DEMO = Path(__file__).resolve().parent.parent / "demo"  # the models that come with this repository


def load_named(flag: str, name: str, kind: str, load: Callable):
    """What `load` returns; where a folder or hub id holds no such thing, whatever a library says of it is one line."""
    here = Path(name).is_dir()
    if not here and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise UserError(f"{flag} {name}: no such folder, and not a hub id (owner/name)")
    try:
        return load()
    except Exception as error:  # each library raises its own
        said = f"holds no whole {kind} ({' '.join(str(error).split())[:120]})" if here else hub_failure(error)
        raise UserError(f"{flag} {name}: {said}; give the hub id or folder of a {kind}") from error


@contextlib.contextmanager
def without_retries_told() -> Iterator[None]:
    """The hub's library tells each of its attempts in two lines; what came of them is told once, by `hub_failure`."""
    from huggingface_hub.utils import logging as hub_logging

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)


def hub_failure(error: Exception) -> str:
    """Why a repository could not be read; the error itself may be the last of several that follow from one another."""
    from datasets.exceptions import DatasetNotFoundError  # here, since these imports take seconds
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    cause = error
    while cause is not None:
        if isinstance(cause, (RepositoryNotFoundError, DatasetNotFoundError)):  # a gated one is a kind of the first
            return "the hub has no such repository, or it is private or gated: then log in with `hf auth login`"
        if isinstance(cause, (ConnectionError, TimeoutError, LocalEntryNotFoundError)):
            return "the hub can't be reached, and there is no copy in the cache"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:300] or type(error).__name__
