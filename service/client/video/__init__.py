"""Segment videos, frame by frame. Needs PyAV and NumPy, which the extra `video` brings."""
