"""Random bits, and exact laws drawn from them: what every noise, coin and seed comes from."""
