"""Multi-level feature fusion network for image anomaly detection (Tang et al., 2025)."""

import os

import lazy_loader

__version__ = "0.1.0"

# Read once, when torch is imported. By default OpenMP's threads spin while they wait for each other, and where another
# program computes too, a step takes ten times as long and more; alone it costs nothing that can be measured.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A name is imported when it is first used: torch takes seconds, and ``mlffn --help`` needs none of it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
