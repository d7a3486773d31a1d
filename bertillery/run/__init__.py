"""A run: its folder, its life from configuration to report, checkpoints, tracking."""
