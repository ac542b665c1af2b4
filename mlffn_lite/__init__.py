"""Multi-level feature fusion network for image anomaly detection (Tang et al., 2025)."""

import lazy_loader

__version__ = "0.1.0"

# A name is imported when it is first used: torch takes seconds, and ``mlffn --help`` needs none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
