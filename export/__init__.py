"""Export a checkpoint to one self-contained .onnx file and compare it with PyTorch."""
