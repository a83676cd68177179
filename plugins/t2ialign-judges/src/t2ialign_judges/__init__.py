"""Rewards that verify what an image shows, and rewards that ask a model about it."""
