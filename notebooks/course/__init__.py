"""What the notebooks need and the library does not: set-up, figures with captions, and the checks of the exercises."""

from .checks import check, checked
from .session import budget, checkpoint, setup, show, show_small

__all__ = ["budget", "check", "checked", "checkpoint", "setup", "show", "show_small"]
