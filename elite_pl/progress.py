"""Progress of a long loop, and the time that it will still take."""

import logging
import sys
import time

log = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """A time in the unit that suits it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Estimate:
    """Counts steps, and says once how much time is left if it is long.

    Args:
        what: The name of the work.
        steps: How many steps there are to make.
        after: Seconds after which it reports.
        long: Fewest seconds left that are reported.
    """

    def __init__(self, what: str, steps: int, after: float = 3, long: float = 20) -> None:
        self.what, self.steps, self.after, self.long = what, steps, after, long
        self.done = 0

    def step(self) -> None:
        """Counts a step. The clock starts after the first, in which PyTorch loads what it needs."""
        self.done += 1
        if self.done == 1:
            self.start = time.monotonic()
            return
        elapsed = time.monotonic() - self.start
        if elapsed < self.after:
            return
        self.after = float("inf")
        left = elapsed / (self.done - 1) * (self.steps - self.done)
        if left > self.long:
            words = (duration(left), self.what, self.steps - self.done, self.steps)
            log.info("about %s of %s left (%d of %d steps)", *words)


class Progress:
    """Counts samples, and reports progress on standard error: on one line of a terminal, else every few seconds.

    Args:
        what: A past participle for the message, such as `scored`.
        total: How many there are; None if unknown.
    """

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.terminal = sys.stderr.isatty()
        self.start = self.said = time.monotonic()

    def step(self, count: int) -> None:
        """Counts some more."""
        self.done += count
        if (now := time.monotonic()) - self.said > (0.2 if self.terminal else 10):
            self.said = now
            self._say(f"{self.what} {self.done:,}{self._left(now - self.start)}")

    def end(self) -> None:
        """Prints the final count, if anything was printed before."""
        if self.said > self.start:
            self._say(f"{self.what} {self.done:,} in {duration(time.monotonic() - self.start)}")
            if self.terminal:
                print(file=sys.stderr)

    def _left(self, elapsed: float) -> str:
        if self.total is None:
            return ""
        left = elapsed / self.done * (self.total - self.done) if self.done else 0.0
        return f" of {self.total:,}, about {duration(left)} left"

    def _say(self, line: str) -> None:
        print(
            f"\r{line:<70}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )
