"""`python -m experiments.rules_mnist`: see `config.toml`."""

import sys
from pathlib import Path

from experiments.harness.runner import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
