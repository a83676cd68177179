"""Commands about a machine and what is on it: what a run takes, what is installed, which runs there are."""
