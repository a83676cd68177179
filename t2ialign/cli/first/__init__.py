"""A newcomer's first commands."""
