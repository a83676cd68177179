"""ReNO and best-of-n for t2ialign: better images from better noise, without training."""
