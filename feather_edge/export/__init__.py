"""Stage 1: from a Hugging Face checkpoint to a bundle of ONNX graphs."""
