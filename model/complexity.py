"""The command `python -m model.complexity`: see model/paper/complexity.py."""

from model.paper.complexity import main

if __name__ == "__main__":
    raise SystemExit(main())
