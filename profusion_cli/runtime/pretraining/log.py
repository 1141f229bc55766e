"""What a training writes down as it goes: log.csv, and TensorBoard events where tensorboard is installed."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from profusion_cli.errors import OutputError
from profusion_cli.files import atomic_output, output_hint
from profusion_cli.runtime.fitting import Step

LOG = "log.csv"
SHEET = "samples-{}.png"
EVENTS = "tensorboard/events.out.tfevents."
"""TensorBoard knows its files by the word `tfevents`, and reads them in order of their names."""
RESUME_HINT = "Free some space, and go on with --resume."
COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "samples_per_second")


class Log:
    """The loss curve as CSV, a line per step, and as events, and sample sheets; of a log that is there already, the
    steps up to `start` stay.

    Raises:
        OutputError: a file that cannot be written, also from the methods.
    """

    def __init__(self, work: Path, start: int) -> None:
        self.work = work
        self._events: Events | None = None
        with self._reported():
            path = work / LOG
            # a line that a full disk has cut off has no end
            rows = path.read_text(encoding="utf-8", errors="replace").splitlines(True)[1:] if path.exists() else []
            numbers = {str(number) for number in range(1, start + 1)}
            kept = [row for row in rows if row.split(",")[0] in numbers and row.endswith("\n")]
            with atomic_output(path, force=True) as file:
                file.write("".join([",".join(COLUMNS), "\n", *kept]).encode())
            self._file = path.open("a", encoding="utf-8", newline="")
            self._writer = csv.writer(self._file, lineterminator="\n")
            with contextlib.suppress(ImportError):
                self._events = Events(work, start)

    def write(self, step: Step, rate: float) -> None:
        """One line, on its way to the disk at once; `rate` is in pictures per second."""
        with self._reported():
            numbers = (step.loss, step.learning_rate, step.grad_norm)
            self._writer.writerow([step.number, *map(repr, numbers), f"{rate:.3f}"])
            self._file.flush()
            if self._events is not None:
                named = zip(COLUMNS[1:], (*numbers, rate), strict=True)
                self._events.add(step.number, *({"tag": name, "simple_value": number} for name, number in named))

    def picture(self, number: int, png: bytes) -> None:
        """The sample sheet after step `number`, as a PNG file and for the events."""
        with self._reported():
            with atomic_output(self.work / SHEET.format(f"{number:08d}"), force=True) as file:
                file.write(png)
            if self._events is not None:
                width, height = Image.open(io.BytesIO(png)).size
                image = {"encoded_image_string": png, "width": width, "height": height}
                self._events.add(number, {"tag": "samples", "image": image})

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            with output_hint(RESUME_HINT):
                yield
        except OSError as error:
            raise OutputError(
                f"The log in '{self.work}' cannot be written: {error.strerror or error}.", RESUME_HINT
            ) from error

    def close(self) -> None:
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()


class Events:
    """One file of TensorBoard events.

    It is written here because tensorboard's own writer has a thread, which prints a traceback on a full disk.
    """

    def __init__(self, work: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        path = work / f"{EVENTS}{time.time_ns()}"
        path.parent.mkdir(exist_ok=True)
        self._event, self._records = Event, RecordWriter(path.open("wb"))
        self._write(file_version="brain.Event:2")
        # TensorBoard drops what earlier files hold of this step and later ones
        self._write(step=start + 1, session_log={"status": "START"})

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def add(self, number: int, *values: dict[str, Any]) -> None:
        """Values of step `number`, as fields of `tensorboard.compat.proto.summary_pb2.Summary.Value`."""
        self._write(step=number, summary={"value": list(values)})

    def close(self) -> None:
        self._records.close()
