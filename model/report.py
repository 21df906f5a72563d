"""The command `python -m model.report`: see model/evaluate/report.py."""

from model.evaluate.report import main

if __name__ == "__main__":
    raise SystemExit(main())
