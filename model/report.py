"""The command `python -m model.report`: see model/evaluate/report.py."""

from model.evaluate.report import script

if __name__ == "__main__":
    raise SystemExit(script())
