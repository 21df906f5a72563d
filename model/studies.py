"""The command `python -m model.studies`: see model/paper/studies/__main__.py."""

from model.paper.studies.__main__ import script

if __name__ == "__main__":
    raise SystemExit(script())
