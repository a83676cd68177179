"""A run followed by trackers (TensorBoard, wandb, ...), each in a process of its own that reads the run directory."""
