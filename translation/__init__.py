"""Sequence-to-sequence models from scratch: vocabularies, batches of two streams, training, decoding, BLEU."""
