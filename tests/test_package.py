from __future__ import annotations

import subprocess
import sys

import pytest

import mlffn_lite


def test_every_public_name_resolves() -> None:
    for name in mlffn_lite.__all__:
        assert getattr(mlffn_lite, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = mlffn_lite.nothing


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, mlffn_lite.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
