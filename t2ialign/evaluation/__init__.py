"""Images on shared seeds, their scores, and what they say: base against tuned, folders of images, cost."""
