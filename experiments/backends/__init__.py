"""Private training with one flag changed: the projection backend, or where the noise comes from."""
