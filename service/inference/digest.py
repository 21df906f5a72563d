"""The digests that an exported file carries of its graph and of its contract.

The graph's is of the serialised `ModelProto` without its metadata, which holds the
digest. Of its encoding only the outermost level is read here: the service works
without the onnx package.
"""

from __future__ import annotations

import hashlib
import json

from service.inference.encoding import MODEL_METADATA, fields


def graph_digest(model: bytes) -> str:
    """SHA-256 of a model file without its metadata."""
    digest = hashlib.sha256()
    view = memoryview(model)
    for number, start, end in fields(model):
        if number != MODEL_METADATA:
            digest.update(view[start:end])
    return digest.hexdigest()


def contract_digest(text: str) -> str:
    """SHA-256 of a contract, given as JSON, without the field that carries the digest itself."""
    contract = json.loads(text) | {"contract_sha256": None}
    return hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()
