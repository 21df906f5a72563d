"""Use the service in label tools: a Label Studio ML backend, and functions for CVAT.

Each calls a running service through the client; none of them loads a model.
"""
