"""``python -m mlffn_lite.datasets.miniparts OUT``."""

import sys

from .files import main

sys.exit(main())
