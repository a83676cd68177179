"""From TOML to a validated spec. Nothing here imports torch."""
