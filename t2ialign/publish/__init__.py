"""What of a run others see: its model card with results, and its place on the hub. No torch."""
