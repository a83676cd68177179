"""The published recipe of the checkpoints in t2ialign-shapes; run it with tools/train_shapes.py."""
