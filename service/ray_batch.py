"""The command `python -m service.ray_batch`: see service/cluster/batch.py."""

from service.cluster.batch import main

if __name__ == "__main__":
    raise SystemExit(main())
