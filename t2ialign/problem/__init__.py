"""The assembled run: backend, sampler, rewards and prompts wired together, and the optimizers that work on it."""
