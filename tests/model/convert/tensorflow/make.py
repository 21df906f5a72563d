"""Write the files of this folder with TensorFlow: `python make.py` where it is installed.

TensorFlow 2.21 wrote the files here. `values` computes their content without TensorFlow.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent
SHAPES: dict[str, tuple[int, ...]] = {
    "MobilenetV2/Conv/weights": (3, 3, 3, 8),
    "MobilenetV2/Conv/weights/Momentum": (3, 3, 3, 8),
    "MobilenetV2/expanded_conv/depthwise/depthwise_weights": (3, 3, 8, 1),
    "logits/semantic/weights": (1, 1, 8, 5),
    "logits/semantic/biases": (5,),
    "empty/weights": (0, 4),
    **{
        f"MobilenetV2/expanded_conv_{block}/project/BatchNorm/{leaf}": (8,)
        for block in range(1, 9)
        for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    },
}


def values() -> dict[str, Any]:
    """Return every variable of the checkpoints: random numbers seeded by its name."""
    found: dict[str, Any] = {
        name: np.random.RandomState(zlib.crc32(name.encode())).randn(*shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    # Freezing stores a constant of equal numbers as one number.
    found["MobilenetV2/expanded_conv_1/project/BatchNorm/gamma"] = np.ones(8, np.float32)
    found["global_step"] = np.int64(30000)
    found["half/weights"] = np.arange(6, dtype=np.float16).reshape(2, 3)
    return found


def main() -> None:
    import tensorflow as tf

    found = values()
    names = sorted(found)

    def save(prefix: str, names: list[str], tensors: list[Any], slices: list[str]) -> None:
        tf.raw_ops.SaveV2(
            prefix=str(FOLDER / prefix),
            tensor_names=names,
            shape_and_slices=slices,
            tensors=[tf.constant(tensor) for tensor in tensors],
        )

    save("model.ckpt", names, [found[name] for name in names], [""] * len(names))
    for part, some in (("a", names[::2]), ("b", names[1::2])):
        save(part, some, [found[name] for name in some], [""] * len(some))
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(FOLDER / "a"), str(FOLDER / "b")],
        destination_prefix=str(FOLDER / "sharded.ckpt"),
    )
    save("sliced.ckpt", ["w", "w"], [np.ones((2, 2), np.float32)] * 2,
         ["4 2 0,2:0,2", "4 2 2,2:0,2"])  # fmt: skip
    save("text.ckpt", ["_CHECKPOINTABLE_OBJECT_GRAPH", "w"], ["graph", np.float32(1)], ["", ""])
    tf.raw_ops.Save(
        filename=str(FOLDER / "version1.ckpt"), tensor_names=["w"], data=[tf.constant([1.0])]
    )
    freeze({name: value for name, value in found.items() if "Momentum" not in name})


def freeze(found: dict[str, Any]) -> None:
    """Variables, their reads and an output, as deeplab/export_model.py leaves them."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = [
            v1.get_variable(name, initializer=value, use_resource=False)
            for name, value in found.items()
        ]
        total = tf.add_n([tf.reduce_sum(tf.cast(each, tf.float32)) for each in variables])
        tf.identity(total, name="SemanticPredictions")
        session.run(v1.global_variables_initializer())
        graph = v1.graph_util.convert_variables_to_constants(
            session, session.graph_def, ["SemanticPredictions"]
        )
        (FOLDER / "frozen_inference_graph.pb").write_bytes(graph.SerializeToString())


if __name__ == "__main__":
    main()
