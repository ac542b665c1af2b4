"""Errors that a user can act on: each says what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MlffnError(Exception):
    """Base of every error that stems from the user's input or surroundings, not from a bug.

    The command line prints it as one line and exits with code 2; ``--debug`` shows the traceback.
    """


class ConfigError(MlffnError):
    """A configuration key or value that does not exist or is out of range."""


class DataError(MlffnError):
    """A data folder, image or mask that cannot be used as it is."""


class UnreadableError(DataError):
    """Images or masks that cannot be read, where ``skip_bad=True`` would leave them out."""


class DownloadError(MlffnError):
    """A download that failed, was cut short, or does not match its checksum."""


class WeightsError(MlffnError):
    """Pretrained weights that are absent or do not fit the backbone."""


class CheckpointError(MlffnError):
    """A checkpoint that is truncated, foreign, or from another configuration."""


class BusyError(MlffnError):
    """A folder that another process writes to."""


class TrainingError(MlffnError):
    """Training that cannot go on, such as a loss that is not finite."""


class StudyError(MlffnError):
    """A folder of results that is damaged, incompatible, or does not belong to the data."""


class MissingExtraError(MlffnError, ImportError):
    """A package that is not installed, because an extra of this one brings it."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import packages of the extra ``name``; if one is absent, MissingExtraError says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == __package__:  # a mistake of ours
            raise
        raise MissingExtraError(
            f"the package {package} is not installed; it comes with pip install 'mlffn-lite[{name}]'"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
