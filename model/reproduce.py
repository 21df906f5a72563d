"""The command `python -m model.reproduce`: see model/paper/reproduce/__main__.py."""

from model.paper.reproduce.__main__ import script

if __name__ == "__main__":
    raise SystemExit(script())
