"""Errors of the hub and of libraries that load from it, as one clear line."""

import contextlib
import hashlib
import json
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from utils.cli import UserError
from utils.files import file_sha256

Loaded = TypeVar("Loaded")
TALKATIVE = ("huggingface_hub", "transformers", "diffusers")
_hush = threading.Lock()
_levels: list[dict[str, int]] = []  # of the loggers, before each block that is quiet
DEMO = Path(__file__).resolve().parent.parent / "demo"  # the models that come with this repository


def load_named(
    flag: str, name: str, kind: str, load: Callable[[], Loaded], advice: str = "", place: str = ""
) -> Loaded:
    """What `load` returns; an error of any library is one line that names the flag and what was expected.

    `advice` says what to do, if that is more than to give another hub id or folder; `place` is the folder of this
    repository that `name` stands for, if it does.
    """
    here = Path(place or name).is_dir()
    if place and not here:
        raise UserError(f"{flag} {name}: is not in this copy of the repository; {advice}")
    check_name(flag, place or name)
    hide_weight_bars()
    try:
        return load()
    except Exception as error:  # each library raises its own
        said = hub_failure(error)
        if here:
            reason = " ".join(str(error).replace(place or name, name).split())
            said = f"does not contain a complete {kind} ({reason[:120]})"
        raise UserError(f"{flag} {name}: {said}; {advice or f'give the hub id or folder of a {kind}'}") from error


def check_name(flag: str, name: str) -> None:
    """Refuse what is neither a folder nor spelt as a hub id."""
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise UserError(f"{flag} {name}: no such folder, and not a hub id (owner/name)")


def hide_weight_bars() -> None:
    """Switch off transformers' bar for each model whose weights are loaded; what is downloaded keeps its bar."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    hidden = are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not hidden:
        enable_progress_bars()


def load_whole(kind: Any, name: str, may_lack: str = "(?!)", **options: Any) -> Any:
    """A model of a diffusers or transformers class; ValueError where its file does not fill it.

    The libraries only warn then, and such layers stay random. `may_lack`: a pattern for those that need no weights.
    """
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet_hub():
        model, report = kind.from_pretrained(name, **options)
    found = [key if isinstance(key, str) else key[0] for key in (*report["missing_keys"], *report["mismatched_keys"])]
    if lacking := sorted(key for key in found if not re.match(may_lack, key)):
        what = f"{len(lacking)} of the weights of a {type(model).__name__}, such as {lacking[0]}"
        raise ValueError(f"its files lack {what}, or have them in another shape")
    return model


def model_key(name: str, demo: Path | None = None) -> str:
    """Distinguishes the caches of models: by the content of a folder, or by the name on the hub; `demo`: that one's."""
    folder = demo if demo and name == "demo" else Path(name)
    sums = {one.name: file_sha256(one) for one in sorted(folder.glob("*.safetensors"))} if folder.is_dir() else {}
    return hashlib.sha256(json.dumps([name, sums]).encode()).hexdigest()[:16]


def find_file(model: str, name: str) -> Path | None:
    """A file of a folder or a hub repository, fetched if need be; None where there is none or it can't be fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(model).is_dir():
        return Path(model, name) if Path(model, name).is_file() else None
    with quiet_hub(), contextlib.suppress(EntryNotFoundError):
        return Path(hf_hub_download(model, name))
    return None


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Without the libraries' lines for each attempt to reach the hub and each weight: one error says what failed.

    Several threads may be within it; the last one that leaves brings the lines back.
    """
    with _hush:
        _levels.append({name: logging.getLogger(name).level for name in TALKATIVE})
        for name in TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The `local_dir_use_symlinks` argument")  # which diffusers gives
            yield
    finally:
        with _hush:
            for name, level in _levels.pop().items():  # those before the first block, once the last one ends
                logging.getLogger(name).setLevel(level)


def hub_failure(error: Exception) -> str:
    """Why a repository could not be read; the error may be the last of a chain."""
    from datasets.exceptions import DatasetNotFoundError  # here, since these imports take seconds
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (RepositoryNotFoundError, DatasetNotFoundError)):  # a gated one is a kind of the first
            return "the hub has no such repository, or it is private or gated: then log in with `hf auth login`"
        if isinstance(cause, (ConnectionError, TimeoutError, LocalEntryNotFoundError)):
            return "the hub can't be reached, and there is no copy in the cache"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:300] or type(error).__name__
