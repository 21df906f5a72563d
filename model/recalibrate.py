"""The command `python -m model.recalibrate`: see model/finish/recalibrate.py."""

from model.finish.recalibrate import script

if __name__ == "__main__":
    raise SystemExit(script())
