"""The command `python -m model.temperature`: see model/finish/temperature.py."""

from model.finish.temperature import script

if __name__ == "__main__":
    raise SystemExit(script())
