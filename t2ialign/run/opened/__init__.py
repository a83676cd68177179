"""Runs from Python and in notebooks."""
