"""`python -m experiments.physics`: see `config.toml`. Takes the camera's calibration first."""

import sys

from experiments.physics import FOLDER, prepare
from experiments.runner import main

if __name__ == "__main__":
    prepare()
    sys.exit(main(FOLDER))
