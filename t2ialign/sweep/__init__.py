"""Many runs of one spec: grid, random or guided; marginal effects; the winner on held-out prompts."""
