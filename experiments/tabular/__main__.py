"""`python -m experiments.tabular`: see `config.toml`. Makes the table first."""

import sys

from experiments.harness.runner import main
from experiments.tabular import FOLDER, prepare

if __name__ == "__main__":
    prepare()
    sys.exit(main(FOLDER))
