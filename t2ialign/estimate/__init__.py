"""What a run will take: memory by component, work by step, time, before any weight is loaded."""
