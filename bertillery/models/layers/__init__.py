"""What networks on packed batches are built of: attention, dropout, recurrence, logits in chunks."""
