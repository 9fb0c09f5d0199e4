"""Files that are kept in memory under an address that nobody can guess, for a while."""

import secrets
import time
from collections import OrderedDict


class KeptFiles:
    """At most so many bytes, the newest ones; each for so many seconds."""

    def __init__(self, most_bytes: int, seconds: float):
        self._most_bytes, self._seconds = most_bytes, seconds
        self._files: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # the oldest first
        self.bytes = 0

    def add(self, content: bytes) -> str:
        """Keep it; its name."""
        name = secrets.token_urlsafe(24)
        self._files[name] = time.monotonic() + self._seconds, content
        self.bytes += len(content)
        self._forget()
        return name

    def find(self, name: str) -> bytes | None:
        self._forget()
        return self._files[name][1] if name in self._files else None

    def _forget(self) -> None:
        while self._files:
            ends, content = next(iter(self._files.values()))
            if ends > time.monotonic() and (self.bytes <= self._most_bytes or len(self._files) == 1):
                return
            self._files.popitem(last=False)
            self.bytes -= len(content)
