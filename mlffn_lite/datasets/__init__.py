"""Image folders, the bundled MiniParts set, and a catalogue of public sets."""

from .catalog import CATALOG, PublicSet, download
from .folder import AnomalyFolder, Sample, Split, read_image, read_mask
from .verify import Finding, VerifyReport, verify

__all__ = [
    "CATALOG",
    "AnomalyFolder",
    "Finding",
    "PublicSet",
    "Sample",
    "Split",
    "VerifyReport",
    "download",
    "read_image",
    "read_mask",
    "verify",
]
