"""Fine-tuning: a pretrained encoder, a task given by one YAML, and what the encoder is worth on it."""
