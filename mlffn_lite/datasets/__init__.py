"""Image folders, the bundled MiniParts set, and a catalogue of public sets."""

import lazy_loader

# Lazily, for who reads a folder needs none of what downloads.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
