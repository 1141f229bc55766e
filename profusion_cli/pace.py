"""Numbers that progress shows: how long work takes, and a loss that does not jump."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """A duration as minutes:seconds, with hours before them where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Pace:
    """How long a piece of work will still take, from reports of how much of it is done.

    What comes before the first report is not counted: that is loading, and warming up.

    Args:
        total: all of the work, in the units of the reports.
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self._first: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None

    def report(self, done: float, now: float) -> None:
        """So much is done at this time, in seconds."""
        self._last = (done, now)
        self._first = self._first or self._last

    def left(self, now: float) -> float | None:
        """Seconds from now, at the mean speed since the first report; None: that is not known yet."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        (before, began), (done, then) = self._first, self._last
        return max((self.total - done) * (then - began) / (done - before) - (now - then), 0.0)


class Smoothed:
    """The mean of a series, of which every value counts less than the next.

    Args:
        keep: what a value counts relative to the one after it, in [0, 1).
    """

    def __init__(self, keep: float = 0.9) -> None:
        self.keep = keep
        self._sum = self._weight = 0.0

    def __call__(self, value: float) -> float:
        """The mean with one value more."""
        self._sum = self.keep * self._sum + value
        self._weight = self.keep * self._weight + 1
        return self._sum / self._weight
