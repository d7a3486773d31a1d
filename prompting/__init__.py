"""Using a causal language model without training it: generation, and evaluation in context."""
