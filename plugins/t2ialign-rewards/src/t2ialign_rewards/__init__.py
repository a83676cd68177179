"""Rewards for t2ialign. Everything is reached through the entry point; see docs/rewards.md."""
