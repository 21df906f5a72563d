"""`python -m model.start`."""

import sys

from model.start.command import main

if __name__ == "__main__":
    sys.exit(main())
