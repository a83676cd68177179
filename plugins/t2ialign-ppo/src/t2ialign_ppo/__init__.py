"""PPO on the tables of few-step solvers (EPD, arXiv 2507.14797)."""
