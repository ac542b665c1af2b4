"""``python -m mlffn_lite`` is the command ``mlffn``."""

from .cli import main

if __name__ == "__main__":
    main()
