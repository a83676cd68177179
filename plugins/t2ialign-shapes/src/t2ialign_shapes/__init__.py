"""A tiny, fully known text-to-image world for t2ialign: checkpoints, exact rewards, prompts."""
