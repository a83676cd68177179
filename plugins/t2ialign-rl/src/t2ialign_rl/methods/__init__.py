"""One file a method: its equations, and the optimizer that follows them."""
