"""The command `python -m service.ray_serve`, and `serve run service.ray_serve:app`.

The code is in service/cluster/serve.py.
"""

from service.cluster.serve import app, main

__all__ = ["app"]

if __name__ == "__main__":
    raise SystemExit(main())
