"""Z-Image Turbo for t2ialign."""
