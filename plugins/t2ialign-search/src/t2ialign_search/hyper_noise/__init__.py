"""A network that maps noise to better noise, trained once and used with one more evaluation (HyperNoise)."""
