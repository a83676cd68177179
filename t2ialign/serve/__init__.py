"""Rewards behind HTTP: what client and server say to each other, and the server."""
