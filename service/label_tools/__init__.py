"""The service inside label tools: a Label Studio ML backend, and functions for CVAT.

Each asks a running service through the client; none of them loads a model.
"""
