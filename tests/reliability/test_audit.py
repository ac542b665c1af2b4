"""The audit of the locked packages sees what it is there for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("audit", ROOT / "tests/audit.py")
assert SPEC is not None
assert SPEC.loader is not None
AUDIT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(AUDIT)


def test_a_vulnerability_is_found_and_a_database_out_of_reach_is_said() -> None:
    skipped = {"name": "a", "skip_reason": "not found"}
    whole = {"name": "b", "version": "1", "vulns": [{"id": "CVE-1"}]}
    report = [skipped, whole, {"name": "c", "version": "2", "vulns": []}]
    assert AUDIT.vulnerabilities(json.dumps({"dependencies": report})) == (["b 1: CVE-1"], "")
    assert AUDIT.vulnerabilities(json.dumps({"dependencies": [skipped]})) == ([], "not found")
    assert AUDIT.vulnerabilities("no network")[1]


@pytest.mark.parametrize(
    ("licence", "fit"),
    [
        ("MIT", True),
        ("GNU Lesser General Public License v3", True),
        ("LGPL-3.0", True),
        ("GPL-3.0-only", False),
        ("AGPL-3.0", False),
        ("GNU General Public License v2", False),
        ("UNKNOWN", False),
    ],
)
def test_licences_that_bind_products_are_refused(licence: str, fit: bool) -> None:
    assert (AUDIT.unfit([{"Name": "a", "License": licence}]) == []) == fit


def test_the_workflow_runs_everything_everywhere() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text("utf-8"))
    jobs = workflow["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    for part in ("ruff check", "mypy", "lint-imports", "deptry", "audit.py", "pytest", "--nbval-lax"):
        assert part in commands
    assert "make " not in commands  # which Windows lacks
    for job in jobs.values():
        assert job["timeout-minutes"] <= 360
        assert all("@" in step["uses"] for step in job["steps"] if "uses" in step)
    assert workflow["permissions"] == {"contents": "read"}
