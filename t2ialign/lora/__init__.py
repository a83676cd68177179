"""The low-rank adapter, its files, and the proof that an exported file works."""
