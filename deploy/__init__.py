"""What becomes of a trained model: comparison, timing, ONNX."""
