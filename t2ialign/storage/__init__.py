"""What lies on disk: whole files, the run directory, pictures, cached embeddings."""
