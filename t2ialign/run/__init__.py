"""The run loop, and what a person sees of it."""
