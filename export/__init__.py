"""Export a checkpoint to one self-contained .onnx file and compare it with PyTorch."""

import service  # noqa: F401 - switches ONNX Runtime's telemetry off before it is loaded
