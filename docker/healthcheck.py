"""The HEALTHCHECK of the images: exit with 0 if the service in this container is ready.

It uses only the standard library and ignores proxy settings.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 4  # shorter than the HEALTHCHECK's timeout, so that the message below is printed


def main() -> int:
    """Request /readyz on DEEPLAB_PORT. Return 0 if the answer is 200."""
    host = os.environ.get("DEEPLAB_HOST", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = int(os.environ.get("DEEPLAB_PORT", "8000"))
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.status, answer.read(200).decode(errors="replace"))
    except OSError as error:
        print(f"http://{host}:{port}/readyz: {error}", file=sys.stderr)
        return 1
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    raise SystemExit(main())
