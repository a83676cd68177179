"""What every part of a step uses: randomness, micro-batches, ranks, paths, conditionings."""
