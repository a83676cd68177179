"""Stable Diffusion and its relatives for t2ialign."""
