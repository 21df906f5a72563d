"""The command `python -m model.rank`: see model/curate/rank.py."""

from model.curate.rank import script

if __name__ == "__main__":
    raise SystemExit(script())
