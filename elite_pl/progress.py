"""How long a long loop will take, said once after its first steps."""

import logging
import time

log = logging.getLogger("elite_pl")


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
            words = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            log.info("about %s of %s left (%d of %d steps)", words, self.what, self.steps - self.done, self.steps)
