"""One job at a time beside the program, whose error is raised when the next one is due: never lost, never early."""

import atexit
import threading
from collections.abc import Callable

LAST_SECONDS = 20.0


class Background:
    """A thread for each job; a job begins when the one before has ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        atexit.register(self._last_chance)

    def start(self, job: Callable[[], object]) -> None:
        """Begin a job. Call `wait` first: what the one before met is raised there."""
        if self._thread is not None:
            raise RuntimeError("the job before was not waited for")
        self._thread = threading.Thread(target=self._do, args=(job,), name=self.name, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the job has ended; raises what it met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _last_chance(self) -> None:
        """A program that ends by an error lets the job finish, but does not wait for ever."""
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)

    def _do(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error
