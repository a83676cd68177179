"""Better images from more sampling: searches over noises and trajectories, and a network that finds good noise."""
