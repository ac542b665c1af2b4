"""Errors that a user can act on: each says what was found, where, and what to do."""

from __future__ import annotations


class MlffnError(Exception):
    """Base of every error that stems from the user's input or surroundings, not from a bug.

    The command line prints it as one line and exits with code 2; ``--debug`` shows the traceback.
    """


class ConfigError(MlffnError):
    """A configuration key or value that does not exist or is out of range."""


class DataError(MlffnError):
    """A data folder, image or mask that cannot be used as it is."""


class DownloadError(MlffnError):
    """A download that failed, was cut short, or does not match its checksum."""


class WeightsError(MlffnError):
    """Pretrained weights that are absent or do not fit the backbone."""


class CheckpointError(MlffnError):
    """A checkpoint that is truncated, foreign, or from another configuration."""


class TrainingError(MlffnError):
    """Training that cannot go on, such as a loss that is not finite."""


class StudyError(MlffnError):
    """A folder of results that is damaged, incompatible, or does not belong to the data."""
