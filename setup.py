"""What pyproject.toml cannot say: the images of MiniParts, which lie in data/miniparts, belong into the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithData(build_py):
    """Copies the images beside the modules; an editable installation finds them where they are."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "mlffn_lite", "datasets", "miniparts_data")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path("data", "miniparts"), target)


setup(cmdclass={"build_py": BuildWithData})
