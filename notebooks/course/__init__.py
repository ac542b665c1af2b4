"""What the notebooks need and the library does not: set-up, figures with captions, and the checks of the exercises."""

from .checks import check
from .session import budget, checkpoint, setup, show

__all__ = ["budget", "check", "checkpoint", "setup", "show"]
