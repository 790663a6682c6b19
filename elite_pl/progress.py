"""How long a long loop will take, said once after its first steps."""

import logging
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
        what: What takes the time.
        steps: How many steps there are to make.
        after: Seconds after which it speaks.
        long: Seconds left that are worth a word.
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
