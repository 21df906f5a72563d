"""The command `python -m model.average`: see model/finish/average.py."""

from model.finish.average import main

if __name__ == "__main__":
    raise SystemExit(main())
