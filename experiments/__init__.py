"""Several runs of a stage: seeds, searches, learning-rate range tests."""
