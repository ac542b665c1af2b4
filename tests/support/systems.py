"""What not every operating system has."""

import os

import pytest

signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals that a process could answer")
pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes among the files of this system")
links = pytest.mark.skipif(os.name == "nt", reason="on Windows links need a privilege")
