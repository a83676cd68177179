"""VAR (visual autoregressive modelling, arXiv 2404.02905) for t2ialign."""
