"""Multi-level feature fusion network for image anomaly detection (Tang et al., 2025)."""

import os

import lazy_loader

__version__ = "0.1.0"

# Read once, when torch is imported. By default OpenMP's threads spin for long while they wait for each other, and where
# other programs compute too, a step takes many times as long. So short a wait costs nothing measurable alone; not to
# spin at all (OMP_WAIT_POLICY=PASSIVE) does.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# A name is imported when it is first used: torch takes seconds, and ``mlffn --help`` needs none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
