"""The command `python -m model.rank`: see model/curate/rank.py."""

from model.curate.rank import main

if __name__ == "__main__":
    raise SystemExit(main())
