"""`python -m experiments.physics`: see `config.toml`. Takes the camera's calibration first."""

import sys

from experiments.harness.runner import main
from experiments.physics import FOLDER, prepare

if __name__ == "__main__":
    prepare()
    sys.exit(main(FOLDER))
