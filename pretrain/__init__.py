"""From text to a pretrained encoder."""
