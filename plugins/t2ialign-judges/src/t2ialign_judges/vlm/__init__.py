"""Rewards that ask a vision-language model about an image."""
