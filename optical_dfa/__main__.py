"""`python -m optical_dfa`."""

import sys

from optical_dfa.cli import main

if __name__ == "__main__":
    sys.exit(main())
