"""Several processes as one: who they are, what they tell each other, and how all of them stop together."""
