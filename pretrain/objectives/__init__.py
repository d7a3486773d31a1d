"""Pretraining objectives, one file each: how examples are drawn and masked, the model, its sums."""
