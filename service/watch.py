"""The runs of a folder as they train: progress, losses, newest validation, memory, the report in words. Read only."""

import hashlib
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from service.errors import ApiError
from service.language import translate
from service.pages import TEMPLATES, page_language, render
from service.report.result_rules import newest_sounds
from service.report.run_record import SILENT, RunRecord, changed_at, find_evaluations, read_run, seconds_silent
from service.report.writing import Report, find_all, make_report
from service.site import Site
from utils.cli import UserError
from utils.metrics_log import seconds_left, smooth
from utils.runs import read_settings

logger = logging.getLogger(__name__)
MOST_RUNS = 30  # the newest
READ = ("config.yaml", "metrics.jsonl", "environment.json", "summary.json", "validation", "best")  # of a run
POINTS = 300  # of a curve
WIDTH, HEIGHT = 600, 160
MEDIA_TYPES = {".png": "image/png", ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg"}


@dataclass(frozen=True)
class Curve:
    """`points` for an SVG; `first` and `last` are the losses at its ends."""

    name: str
    points: str
    first: float
    last: float


@dataclass(frozen=True)
class Chart:
    """Curves from step 0 to the run's newest, and from the lowest loss to the highest."""

    curves: list[Curve]
    low: float
    high: float


@dataclass(frozen=True)
class Card:
    """What is shown of one run. `version` changes with it; `files` are those of the newest validation.

    A run that can't be shown has a `fault` alone, the key of what is said of it.
    """

    name: str
    version: str
    fault: str = ""
    state: str = ""
    step: int = 0
    last: int = 0  # the step that the training is to end with; 0 where it is not known
    left: float | None = None  # seconds
    memory: float | None = None
    chart: Chart | None = None
    files: list[Path] = field(default_factory=list)
    report: Report | None = None


class Watched:
    """The runs of a folder, each read again once a file that its card is made of has changed; for several threads."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._cards: dict[tuple[Path, str], Card] = {}
        self._files: dict[str, Path] = {}
        self._logged: set[str] = set()
        self._lock = threading.Lock()

    def read(self, language: str) -> list[Card] | None:
        """Those that changed last come first; None where the folder can't be read, as once it is gone."""
        with self._lock:
            try:
                folders = find_runs(self._folder)
            except OSError as error:
                self._log_once(f"--watch {self._folder}: {error.strerror}", error)
                return None
            return [self._read_one(folder, language) for folder in folders]

    def _read_one(self, folder: Path, language: str) -> Card:
        version = version_of(folder)
        known = self._cards.get((folder, language))
        if known and known.version == version:
            return known
        try:
            card = make_card(folder, version, language)
        except Exception as error:  # whatever it is: the other runs are shown all the same
            self._log_once(f"{folder} can't be shown: {error!r}", error)
            return Card(folder.resolve().name, version, find_fault(folder))
        self._cards[folder, language] = card
        return card

    def _log_once(self, message: str, error: Exception) -> None:
        if message not in self._logged:
            self._logged.add(message)
            logger.warning(message, exc_info=None if isinstance(error, (UserError, OSError)) else error)

    def name_file(self, path: Path) -> str:
        """The name by which a file may be asked for, another one once the file changes."""
        name = hashlib.sha256(f"{path} {changed_at(path)}".encode()).hexdigest()[:32] + path.suffix
        with self._lock:
            self._files.pop(name, None)  # so that it is the newest
            self._files[name] = path
            while len(self._files) > 50 * MOST_RUNS:
                del self._files[next(iter(self._files))]
        return name

    def find_file(self, name: str) -> Path | None:
        return self._files.get(name)


def find_runs(folder: Path) -> list[Path]:
    """The folder's runs, or the folder itself if it is one; those that changed last come first."""
    places = [folder] if (folder / "config.yaml").is_file() else [path for path in folder.iterdir() if path.is_dir()]
    runs = [path for path in places if (path / "metrics.jsonl").is_file()]
    return sorted(runs, key=lambda path: changed_at(path / "metrics.jsonl"), reverse=True)[:MOST_RUNS]


def find_fault(folder: Path) -> str:
    """The key of what is said of a run that can't be shown."""
    if not (folder / "config.yaml").is_file():
        return "watching.no_settings"
    try:
        read_settings(folder)
    except UserError:
        return "watching.damaged_settings"
    return "watching.fault"


def version_of(folder: Path) -> str:
    """Changes with the files that a card is made of, and once a run has become silent.

    Of the runs beside it, which it is compared with, `best` changes with each better held-out loss.
    """
    own = [folder / name for name in READ] + find_evaluations(folder)
    times = [changed_at(path) for path in (*own, *sorted(folder.resolve().parent.glob("*/best")))]
    return hashlib.sha256(repr((times, is_silent(folder))).encode()).hexdigest()[:16]


def is_silent(folder: Path) -> bool:
    """Whether there has been no record for so long that the run is not called training."""
    return seconds_silent(folder) > SILENT


def make_card(folder: Path, version: str, language: str) -> Card:
    run = read_run(folder)
    state = "watching.ended" if run.has_ended else "watching.silent" if is_silent(folder) else "watching.training"
    last = int(run.last_step)
    left = seconds_left(run.records, last) if last and not run.has_ended else None
    memory = run.values("memory_gib")
    images = sorted((folder / "validation").glob("*.png"), key=changed_at)[-1:]
    return Card(
        name=run.name,
        version=version,
        state=translate(language, state),
        step=run.step,
        last=last,
        left=left,
        memory=memory[-1] if memory else None,
        chart=draw_chart(run),
        files=[path for path in (*images, *newest_sounds(run)[:4]) if path.suffix in MEDIA_TYPES],
        report=make_report(run, find_all(run), language),
    )


def draw_chart(run: RunRecord) -> Chart | None:
    """The smoothed training loss and the validation loss, on one scale."""
    found = {name: run.pairs(name) for name in (run.loss_name, "val_loss")}
    found[run.loss_name] = [
        (step, loss) for (step, _), loss in zip(found[run.loss_name], smooth(run.values(run.loss_name)))
    ]
    every = [loss for pairs in found.values() for _, loss in pairs]
    if not every or not run.step:
        return None
    low, high = min(every), max(every)

    def place(step: int, loss: float) -> str:
        return f"{WIDTH * step / run.step:.1f},{HEIGHT * (1 - (loss - low) / ((high - low) or 1)):.1f}"

    curves = [
        Curve(name, " ".join(place(*pair) for pair in thin_out(pairs)), pairs[0][1], pairs[-1][1])
        for name, pairs in found.items()
        if pairs
    ]
    return Chart(curves, low, high)


def thin_out(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most some POINTS of them, the last one included."""
    every = -(-len(pairs) // POINTS)
    return pairs[::-1][::every][::-1]


def watch_routes(site: Site, folder: Path) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    watched = Watched(folder)

    def show(request: Request, template: str) -> HTMLResponse:
        language = page_language(request, site.language)
        values: dict[str, Any] = {"cards": watched.read(language), "page": site.title, "file": watched.name_file}
        return render(request, template, language, folder=folder.resolve().name, size=(WIDTH, HEIGHT), **values)

    @routes.get("/watch")
    def page(request: Request) -> HTMLResponse:
        return show(request, "watch.html")

    @routes.get("/watch/runs")
    def runs(request: Request) -> HTMLResponse:
        return show(request, "watch_runs.html")

    @routes.get("/watch.js")
    async def script() -> Response:
        content = (TEMPLATES / "watch.js").read_text("utf-8")
        return Response(content, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    @routes.get("/watch/files/{name}")
    def get_file(name: str) -> FileResponse:
        path = watched.find_file(name)
        if path is None or not path.is_file():
            raise ApiError(404, "there is no such file, or it has changed; load the page again", "not_found")
        return FileResponse(
            path, media_type=MEDIA_TYPES[path.suffix], headers={"Cache-Control": "private, max-age=3600"}
        )

    return routes
