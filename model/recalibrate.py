"""The command `python -m model.recalibrate`: see model/finish/recalibrate.py."""

from model import memory
from model.finish.recalibrate import main

if __name__ == "__main__":
    memory.keep_freed_on_a_cpu()
    raise SystemExit(main())
