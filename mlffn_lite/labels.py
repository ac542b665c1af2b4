"""What tables, figures and pages call the metrics."""

from __future__ import annotations

METRIC_LABELS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pro": "PRO"}
"""Label by key, in the order of tables; files hold the metrics as fractions under these keys."""

PERCENT = {key: f"{label} %" for key, label in METRIC_LABELS.items()}
