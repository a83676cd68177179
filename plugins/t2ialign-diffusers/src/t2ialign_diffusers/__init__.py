"""What backends on diffusers pipelines share."""
