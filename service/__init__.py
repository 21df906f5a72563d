"""The HTTP service, its inference engine and the batch client. Needs neither torch nor `model`."""

import os
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

# ONNX Runtime 1.32 and later sends usage data to its maker, and keeps a database in the home
# directory for it. It reads this variable when it is loaded, which only modules below this do.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def version() -> str:
    """Return the version of this package; "unknown" in a checkout that is not installed."""
    try:
        return installed_version("deeplab")
    except PackageNotFoundError:
        return "unknown"
