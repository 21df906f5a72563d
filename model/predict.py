"""The command `python -m model.predict`: see model/evaluate/predict.py.

Do not import this file: the name `model.predict` is the function in model/__init__.py.
"""

from model.evaluate.predict import script

if __name__ == "model.predict":
    raise ImportError("model.predict is a function: use `import model` and call model.predict")
if __name__ == "__main__":
    raise SystemExit(script())
