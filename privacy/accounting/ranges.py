"""Where figures are computed; outside, the bound at the end is said."""

# Below this an un-subsampled step alone costs an epsilon above 1000: inf is said, and grids stay within memory.
LEAST_NOISE = 0.02
# Epsilon falls in the noise multiplier and grows with the sample rate: outside these, the bound at the end is said.
LARGEST_NOISE = 1e6
LEAST_RATE = 1e-12
