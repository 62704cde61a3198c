"""Networks with public gates under the rule whose update is linear in a small sum, with privacy and without."""
