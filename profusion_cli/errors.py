"""Every error a user can meet, and the exit code that goes with it.

    ProfusionError
    ├── UsageError          2   the command line does not make sense
    ├── ConfigError         3   preset or configuration value
    ├── BundleError         4   a .pfz file that cannot be used
    ├── InputError          5   image, mask or prompt
    ├── DeviceError         6   device or memory
    ├── DivergedError       7   training left the finite numbers
    ├── UnavailableError    8   model weights or an optional library
    └── OutputError         9   the output exists or cannot be written

Exit code 0 is success, 1 is a bug (with its traceback), 130 an interrupt and 143 SIGTERM. A message is one
sentence that says what is wrong with which value; the hint is one sentence that says what to do.
"""

from __future__ import annotations


class ProfusionError(Exception):
    """Base of all errors that are the user's to mend.

    Args:
        message: one sentence: what is wrong, with which value.
        hint: one sentence: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ProfusionError):
    """The command line does not make sense."""

    exit_code = 2


class ConfigError(ProfusionError):
    """A preset or a configuration value is wrong."""

    exit_code = 3


class BundleError(ProfusionError):
    """A bundle is damaged, of the wrong kind, or made for something else."""

    exit_code = 4


class InputError(ProfusionError):
    """An image, a mask or a prompt cannot be used."""

    exit_code = 5


class DeviceError(ProfusionError):
    """The device is missing or out of memory."""

    exit_code = 6


def out_of_memory(error: BaseException, hint: str) -> DeviceError:
    """What to say of a device that ran out of memory.

    Args:
        error: as torch or Python raised it.
        hint: one sentence: what to do about it.
    """
    return DeviceError(f"The device ran out of memory: {first_line(error)}", hint)


def first_line(error: BaseException) -> str:
    """The first line of what a library says, or the kind of its error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class DivergedError(ProfusionError):
    """Training produced a non-finite loss."""

    exit_code = 7


class UnavailableError(ProfusionError):
    """Model weights or an optional library cannot be had."""

    exit_code = 8


class GoneError(UnavailableError):
    """A repository of the Hub that is no longer there, or not for everybody."""


class OutputError(ProfusionError):
    """The output exists or cannot be written."""

    exit_code = 9


class Interrupted(KeyboardInterrupt):
    """A signal that a command has met in its own way.

    Args:
        number: of the signal.
        message: what was saved, and how to go on, if there is anything to say.
    """

    def __init__(self, number: int, *message: str) -> None:
        super().__init__(*message)
        self.exit_code = 128 + number
