"""Multi-level feature fusion network for image anomaly detection (Tang et al., 2025)."""

__version__ = "0.1.0"
