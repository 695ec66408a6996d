"""What runs in threads of its own beside a scenario, from the beginning of a block to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self


class Beside:
    """Used as a context manager. ``works`` begin with the block and end soon after ``over`` is set, at its end.

    A work that fails is a bug, which ``check`` and the end of the block raise.
    """

    def __init__(self, *works: Callable[[], object]) -> None:
        self.over = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in works]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()
        self.check()

    def check(self) -> None:
        """Fails if a work has."""
        if self._failure is not None:
            raise AssertionError(f"{type(self).__name__} failed") from self._failure

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure = error
