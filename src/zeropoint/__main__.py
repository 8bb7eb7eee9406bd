"""`python -m zeropoint` is the command `zeropoint`."""

from __future__ import annotations

import sys

from zeropoint.cli import main

if __name__ == "__main__":
    sys.exit(main())
