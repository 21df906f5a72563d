"""The command `python -m model.audit`: see model/curate/audit.py."""

from model.curate.audit import script

if __name__ == "__main__":
    raise SystemExit(script())
