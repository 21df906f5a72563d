"""Run the published 8-bit MobileNetV2 in TensorFlow Lite's runtime, once per input line.

Prints "ready", then a line after each run. Run it in the environment of litert.txt:
python -m service.bench.rivals.litert FILE.tflite IMAGE.npy --threads 2
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    """Run the same image once for every line of input."""
    p = argparse.ArgumentParser(description="Run a TFLite file that takes one uint8 image.")
    p.add_argument("file", help="TFLite file")
    p.add_argument("image", help="NumPy file, (1, H, W, 3) uint8")
    p.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    args = p.parse_args()
    interpreter = Interpreter(args.file, num_threads=args.threads)
    interpreter.allocate_tensors()
    (wanted,) = interpreter.get_input_details()
    image = np.load(args.image)
    interpreter.set_tensor(wanted["index"], image)
    print("ready", flush=True)
    for _ in sys.stdin:
        interpreter.set_tensor(wanted["index"], image)
        interpreter.invoke()
        print("done", flush=True)


if __name__ == "__main__":
    main()
