"""What all stages share: configuration, batches, the loop, checkpoints, export."""
