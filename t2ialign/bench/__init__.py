"""Prompt suites: images for the suites' own scorers, scored in place, quality beside what it cost."""
