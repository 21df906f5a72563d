"""The digest of a file's graph, by which an altered file is known."""

from __future__ import annotations

import hashlib

import onnx


def graph_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of all of a model but its metadata, which carries the digest itself."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
