"""``bench``, ``sweep``, ``push``: from runs to results that others can check."""
