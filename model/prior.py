"""The command `python -m model.prior`: see model/finish/prior.py."""

from model.finish.prior import main

if __name__ == "__main__":
    raise SystemExit(main())
