"""Numbers about the server since its start, as Prometheus reads them."""

import threading
from collections import defaultdict
from collections.abc import Callable

PREFIX = "accelerate_serve_"
HELP = {
    "requests_total": "Requests that were answered, by route and HTTP status.",
    "images_total": "Images that were made.",
    "image_batches_total": "Batches in which images were made.",
    "image_seconds_total": "Seconds in which images were made.",
    "images_cancelled_total": "Images that nobody waited for any more.",
    "sentences_total": "Sentences that were spoken.",
    "speaking_seconds_total": "Seconds in which sentences were spoken.",
    "images_waiting": "Images that wait now.",
    "speech_requests_now": "Speech requests in work or waiting now.",
    "kept_bytes": "Bytes of the images that are kept for their addresses.",
    "memory_bytes": "Resident memory of the process.",
}


class Measures:
    """Counters, which only grow, and gauges, which are read when somebody asks. Threads may count at once."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], float] = defaultdict(float)
        self._gauges: dict[str, Callable[[], float]] = {}
        self._lock = threading.Lock()

    def count(self, name: str, amount: float = 1, **labels: object) -> None:
        written = ",".join(f'{key}="{value}"' for key, value in labels.items())
        with self._lock:
            self._counts[name, written] += amount

    def watch(self, name: str, read: Callable[[], float]) -> None:
        self._gauges[name] = read

    def write(self) -> str:
        """In Prometheus' text format."""
        with self._lock:
            counts = dict(self._counts)
        samples = {**counts, **{(name, ""): read() for name, read in self._gauges.items()}}
        lines = []
        for name in HELP:
            found = [(labels, value) for (one, labels), value in samples.items() if one == name]
            if found:
                kind = "counter" if name.endswith("_total") else "gauge"
                lines += [f"# HELP {PREFIX}{name} {HELP[name]}", f"# TYPE {PREFIX}{name} {kind}"]
                lines += [
                    f"{PREFIX}{name}{{{labels}}} {value:.10g}" if labels else f"{PREFIX}{name} {value:.10g}"
                    for labels, value in sorted(found)
                ]
        return "\n".join(lines) + "\n"
