"""DAV: diffusion alignment as variational expectation-maximisation (arXiv 2510.00502)."""
