"""Infinity (bitwise next-scale prediction, arXiv 2412.04431) for t2ialign."""
