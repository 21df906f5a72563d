"""Digests of a file's graph and contract, by which an altered file is known."""

from __future__ import annotations

import hashlib
import json

import onnx


def graph_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of all of a model but its metadata, which carries the digest itself."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def contract_digest(text: str) -> str:
    """SHA-256 of a contract, given as JSON, but for the field that carries the digest itself."""
    fields = json.loads(text) | {"contract_sha256": None}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
