"""The HTTP service, its inference engine and the batch client. Needs neither torch nor `model`."""

import os
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

# ONNX Runtime 1.32 and later sends usage data to its vendor and keeps a database for it in the home
# directory. It reads this variable when it is loaded, and only modules of this package load it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def version() -> str:
    """Return the version of this package; "unknown" in a checkout that is not installed."""
    try:
        return installed_version("deeplab")
    except PackageNotFoundError:
        return "unknown"
