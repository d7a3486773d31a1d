"""Training steps: batches, their order, the loop, the optimizer. It knows no model and no loss by name."""
