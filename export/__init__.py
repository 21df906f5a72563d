"""From a checkpoint to one self-contained .onnx file, proven equal; the bridge to the service."""
