"""Networks of other libraries are adopted and served.

The networks are linear in the photo's colours, so NumPy computes every expected label from the
photo, without any of the code that adopts networks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export import adopt, describe
from export.adopt import main
from service.inference.contract import CONFIDENCE, INPUT, LABELS, WITH_CONFIDENCE, Contract
from tests.service.web import opened, photo, png, post, serving

SIZE = (48, 64)
NAMES = ("ground", "red", "green", "blue")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
# Scores of the four classes from normalised red, green and blue: (4, 3).
WEIGHTS = np.array([[0, 0, 0], [2, -1, -1], [-1, 2, -1], [-1, -1, 2]], np.float32)
BIAS = np.array([0.3, 0, 0, 0], np.float32)


def scores(
    image: NDArray[np.uint8],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    highest: float = 1.0,
) -> NDArray[np.float64]:
    """(..., 3) bytes -> (..., 4) scores of the linear network."""
    values = (image / 255 * highest - np.array(mean)) / np.array(std)
    found: NDArray[np.float64] = values @ WEIGHTS.T.astype(np.float64) + BIAS
    return found


def network(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str | None],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, NDArray[Any]],
    *,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    name: str = "pixel_values",
) -> onnx.ModelProto:
    """A file with one input."""
    image = helper.make_tensor_value_info(name, kind, shape)
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", [image], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def output(name: str, kind: int = TensorProto.FLOAT, rank: int = 4) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [None] * rank)


CONV: dict[str, NDArray[Any]] = {"weights": WEIGHTS[:, :, None, None], "bias": BIAS}


def smp(**options: Any) -> onnx.ModelProto:
    """segmentation_models_pytorch: any size and batch, logits of the photo's size."""
    conv = helper.make_node("Conv", ["pixel_values", "weights", "bias"], ["logits"])
    return network([conv], ["n", 3, "h", "w"], [output("logits")], CONV, **options)


def segformer() -> onnx.ModelProto:
    """Hugging Face's SegFormer: logits at a quarter of the size."""
    nodes = [
        helper.make_node(
            "AveragePool", ["pixel_values"], ["small"], kernel_shape=[4, 4], strides=[4, 4]
        ),
        helper.make_node("Conv", ["small", "weights", "bias"], ["logits"]),
    ]
    return network(nodes, ["batch", 3, "height", "width"], [output("logits")], CONV)


def torchvision() -> onnx.ModelProto:
    """torchvision: two outputs, `out` and the auxiliary classifier's `aux`."""
    nodes = [
        helper.make_node("Conv", ["pixel_values", "weights", "bias"], ["out"]),
        helper.make_node("Neg", ["out"], ["aux"]),
    ]
    return network(nodes, ["n", 3, *SIZE], [output("aux"), output("out")], CONV)


def mmsegmentation(opset: int = 11) -> onnx.ModelProto:
    """mmdeploy: a fixed size and batch, argmax inside, labels (1, 1, H, W) of 64 bits."""
    nodes = [
        helper.make_node("Conv", ["input", "weights", "bias"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["output"], axis=1, keepdims=1),
    ]
    ends = [output("output", TensorProto.INT64)]
    return network(nodes, [1, 3, *SIZE], ends, CONV, opset=opset, name="input")


def keras() -> onnx.ModelProto:
    """tf2onnx: NHWC throughout, probabilities at the end."""
    nodes = [
        helper.make_node("MatMul", ["pixel_values", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["softmax"], axis=-1),
    ]
    constants: dict[str, NDArray[Any]] = {"weights": WEIGHTS.T.copy(), "bias": BIAS}
    return network(nodes, [None, *SIZE, 3], [output("softmax")], constants)


def baked() -> onnx.ModelProto:
    """Like legacy exports of transformers: a Reshape has the batch size of the example."""
    nodes = [
        helper.make_node("Reshape", ["pixel_values", "flat"], ["pixels"]),
        helper.make_node("Transpose", ["pixels"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["back", "square"], ["logits"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "flat": np.array([1, 3, SIZE[0] * SIZE[1]], np.int64),
        "square": np.array([1, 4, *SIZE], np.int64),
        "weights": WEIGHTS.T.copy(),
        "bias": BIAS,
    }
    return network(nodes, [1, 3, *SIZE], [output("logits")], constants)


def small_bytes() -> onnx.ModelProto:
    """A network that takes bytes, NHWC, and gives labels (N, H/2, W/2) of 32 bits."""
    nodes = [
        helper.make_node("Cast", ["bytes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("MaxPool", ["planes"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ArgMax", ["half"], ["wide"], axis=1, keepdims=0),
        helper.make_node("Cast", ["wide"], ["classes"], to=TensorProto.INT32),
    ]
    ends = [output("classes", TensorProto.INT32, 3)]
    return network(nodes, ["n", *SIZE, 3], ends, {}, kind=TensorProto.UINT8, name="bytes")


def binary(*, sigmoid: bool) -> onnx.ModelProto:
    """SMP with classes=1: one channel, as logits or behind a sigmoid."""
    nodes = [helper.make_node("Conv", ["pixel_values", "weights", "bias"], ["one"])]
    if sigmoid:
        nodes.append(helper.make_node("Sigmoid", ["one"], ["mask"]))
    constants: dict[str, NDArray[Any]] = {
        "weights": CONV["weights"][1:2],
        "bias": np.array([0.1], np.float32),
    }
    end = "mask" if sigmoid else "one"
    return network(nodes, ["n", 3, *SIZE], [output(end)], constants)


def adopted(model: onnx.ModelProto, folder: Path, *arguments: str) -> Path:
    """Adopt a network from a file; return the new one."""
    source, target = folder / "foreign.onnx", folder / "models" / "adopted.onnx"
    onnx.save(model, source)
    classes = () if "--classes" in arguments else ("--classes", ",".join(NAMES))
    assert main([str(source), "-o", str(target), *classes, *arguments]) == 0
    return target


def labels(path: Path, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([LABELS], {INPUT: images})[0]  # type: ignore[no-any-return]


def contract(path: Path) -> Contract:
    return describe.load(path)[1]


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Two photos of patches, (2, H, W, 3)."""
    return np.stack([photo(*SIZE, seed=seed) for seed in (1, 2)])


ADOPTED = [
    ("smp", smp(), [*IMAGENET, "--size", "48,64"]),
    ("smp at the oldest opset", smp(opset=11), [*IMAGENET, "--size", "48,64", "--confidence"]),
    ("smp at a new opset", smp(opset=21), [*IMAGENET, "--size", "48,64", "--confidence"]),
    ("torchvision", torchvision(), IMAGENET),
    ("mmsegmentation", mmsegmentation(), IMAGENET),
    ("keras", keras(), [*IMAGENET, "--confidence"]),
    ("a batch in a Reshape", baked(), [*IMAGENET, "--confidence"]),
]


@pytest.mark.parametrize(
    ("model", "arguments"),
    [case[1:] for case in ADOPTED],
    ids=[case[0] for case in ADOPTED],
)
def test_labels_are_those_of_the_network(
    model: onnx.ModelProto, arguments: list[str], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = adopted(model, tmp_path, *arguments)
    expected = scores(images).argmax(-1)
    assert len(np.unique(expected)) == 4
    assert (labels(path, images) == expected).mean() > 0.9999
    assert contract(path).classes == NAMES
    assert contract(path).parity.agreement == 1.0


def test_byte_means_and_channel_order_follow_the_options(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Caffe's networks take blue first, and means of bytes in that order."""
    arguments = ["--mean", "104,117,123", "--std", "1", "--channels", "bgr", "--size", "48,64"]
    path = adopted(smp(), tmp_path, *arguments)
    expected = scores(images[..., ::-1], (104, 117, 123), (1, 1, 1), 255).argmax(-1)
    assert (labels(path, images) == expected).mean() > 0.9999
    assert contract(path).input.pad == (123, 117, 104)  # as RGB


def test_small_scores_are_interpolated_between_pixel_centres(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Compare with Pillow's bilinear filter, except at borders, which it treats differently."""
    path = adopted(segformer(), tmp_path, *IMAGENET, "--size", "48,64")
    small = scores(images).reshape(2, 12, 4, 16, 4, 4).mean((2, 4))
    large = np.empty((2, *SIZE, 4))
    for index in np.ndindex(2, 4):
        picture = Image.fromarray(small[index[0], ..., index[1]].astype(np.float32))
        resized = picture.resize(SIZE[::-1], Image.Resampling.BILINEAR)
        large[index[0], ..., index[1]] = np.asarray(resized)
    assert (labels(path, images) == large.argmax(-1)).mean() > 0.999


def test_small_labels_are_repeated(images: NDArray[np.uint8], tmp_path: Path) -> None:
    path = adopted(small_bytes(), tmp_path, "--classes", "red,green,blue")
    half = images.reshape(2, 24, 2, 32, 2, 3).max((2, 4)).argmax(-1)
    assert (labels(path, images) == half.repeat(2, 1).repeat(2, 2)).all()


@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_channel_becomes_two_classes_with_its_probability(
    sigmoid: bool, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = adopted(
        binary(sigmoid=sigmoid), tmp_path, *IMAGENET, "--classes", "rest,red", "--confidence"
    )
    logit = scores(images)[..., 1] + 0.1
    chance = 1 / (1 + np.exp(-np.abs(logit)))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    found, sure = session.run([LABELS, CONFIDENCE], {INPUT: images})
    assert (found == (logit > 0)).mean() > 0.9999
    assert np.abs(sure - chance * 255).max() <= 1


@pytest.mark.parametrize("model", [smp(), keras(), baked()], ids=["logits", "softmax", "baked"])
def test_confidence_is_the_softmax_and_costs_nothing_unless_requested(
    model: onnx.ModelProto, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = adopted(model, tmp_path, *IMAGENET, "--confidence", "--size", "48,64")
    powers = np.exp(scores(images))
    chance = powers.max(-1) / powers.sum(-1)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (sure,) = session.run([CONFIDENCE], {INPUT: images})
    assert np.abs(sure - chance * 255).max() <= 1
    unasked = {INPUT: images, WITH_CONFIDENCE: np.array(False)}
    assert session.run([CONFIDENCE], unasked)[0].shape == (0, *SIZE)


def test_the_service_serves_an_adopted_network_like_its_own(tmp_path: Path) -> None:
    """The photo has another size than the network; its labels are those of the fitted photo."""
    path = adopted(smp(), tmp_path, *IMAGENET, "--size", "48,64", "--confidence")
    image = photo(40, 50, seed=3)
    with serving(path.parent) as client:
        mask = opened(post(client, png(image)).content)
        sure = post(client, png(image), output="confidence")
        (model,) = client.get("/models").json()["models"]
    assert (mask == scores(image).argmax(-1)).mean() > 0.9999
    assert sure.status_code == 200
    assert model["classes"] == list(NAMES)


def test_half_precision_is_kept_and_reported(images: NDArray[np.uint8], tmp_path: Path) -> None:
    half = smp()
    for tensor in half.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for each in (*half.graph.input, *half.graph.output):
        each.type.tensor_type.elem_type = TensorProto.FLOAT16
    path = adopted(half, tmp_path, *IMAGENET, "--size", "48,64")
    assert contract(path).precision == "fp16"
    assert (labels(path, images) == scores(images).argmax(-1)).mean() > 0.995


def test_weights_in_an_external_file_are_included(
    images: NDArray[np.uint8], tmp_path: Path
) -> None:
    source = tmp_path / "foreign.onnx"
    onnx.save(smp(), source, save_as_external_data=True, location="weights", size_threshold=0)
    target = tmp_path / "models" / "adopted.onnx"
    command = [str(source), "-o", str(target), "--classes", ",".join(NAMES), *IMAGENET]
    assert main([*command, "--size", "48,64"]) == 0
    (tmp_path / "weights").unlink()
    assert (labels(target, images) == scores(images).argmax(-1)).mean() > 0.9999


def test_the_output_says_what_was_found_and_what_the_network_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", SIZE[::-1], (255, 0, 0)).save(photos / "red.png")
    (photos / "notes.txt").write_text("no photo")
    arguments = [*IMAGENET, "--size", "48,64", "--photos", str(photos)]
    adopted(smp(), tmp_path, *arguments)
    told = capsys.readouterr().out
    assert "input nchw 48 x 64, logits 48 x 64, in batches" in told
    assert "\nred.png: red 100%\n" in told
    assert "one class only" in told


def test_describe_shows_an_adopted_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = adopted(smp(), tmp_path, *IMAGENET, "--size", "48,64", "--name", "Unet")
    capsys.readouterr()
    assert describe.main([str(path)]) == 0
    told = capsys.readouterr().out
    assert "Unet\n" in told
    assert "labels as foreign.onnx" in told


@pytest.mark.parametrize("form", ["lines", "list", "id2label"])
def test_names_come_from_a_file(form: str, tmp_path: Path) -> None:
    file = tmp_path / ("names.txt" if form == "lines" else "config.json")
    numbered = {str(number): name for number, name in reversed(list(enumerate(NAMES)))}
    texts = {
        "lines": "\n".join(NAMES),
        "list": json.dumps(NAMES),
        "id2label": json.dumps({"model_type": "segformer", "id2label": numbered}),
    }
    file.write_text(texts[form])
    path = adopted(smp(), tmp_path, *IMAGENET, "--size", "48,64", "--classes", str(file))
    assert contract(path).classes == NAMES


def wrong(shape: Sequence[int | str | None]) -> onnx.ModelProto:
    conv = helper.make_node("Conv", ["pixel_values", "weights", "bias"], ["logits"])
    return network([conv], shape, [output("logits")], CONV)


def two_outputs() -> onnx.ModelProto:
    model = smp()
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["other"]))
    model.graph.output[0].name = "more"
    model.graph.node.append(helper.make_node("Identity", ["logits"], ["more"]))
    model.graph.output.append(output("other"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (smp(), [], "takes numbers: give --mean and --std as in training"),
        (smp(), ["--mean", "0", "--std", "1"], "say with --range whether white is 1 or 255"),
        (smp(), ["--mean", "0.5"], "give both --mean and --std"),
        (smp(), [*IMAGENET, "--classes", "voc"], "scores have one channel for each class"),
        (smp(), [*IMAGENET, "--classes", "no-such-file.txt"], "name a file that exists"),
        (smp(opset=9), IMAGENET, "has opset 9: export it with opset 11 or later"),
        (small_bytes(), IMAGENET, "takes bytes: leave --mean and --std out"),
        (torchvision(), [*IMAGENET, "--size", "64,64"], "the network takes 48,64 alone"),
        (two_outputs(), IMAGENET, "choose one with --output-name"),
        (wrong(["n", None, None, None]), IMAGENET, "--layout nchw or nhwc"),
        (wrong([4, 3, 48, 64]), IMAGENET, "takes 4 photos at a time"),
        (mmsegmentation(), [*IMAGENET, "--classes", "a,b"], "--classes names 2: 0 to 1"),
        (smp(), [*IMAGENET, "--kind", "labels"], "not whole numbers"),
    ],
)
def test_unsuitable_files_and_options_exit_2_and_say_what_to_change(
    model: onnx.ModelProto,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = tmp_path / "foreign.onnx", tmp_path / "adopted.onnx"
    onnx.save(model, source)
    classes = [] if "--classes" in arguments else ["--classes", ",".join(NAMES)]
    assert main([str(source), "-o", str(target), *classes, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_a_file_that_we_exported_needs_no_adoption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = adopted(smp(), tmp_path, *IMAGENET, "--size", "48,64")
    assert main([str(path), "-o", str(tmp_path / "x.onnx"), "--classes", "voc"]) == 2
    assert "has a contract already" in capsys.readouterr().err


def test_a_file_that_is_not_onnx_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model at all")
    for name in ("x.onnx", "missing.onnx"):
        command = [str(tmp_path / name), "-o", str(tmp_path / "y.onnx"), "--classes", "voc"]
        assert main([*command, *IMAGENET]) == 2
        assert name in capsys.readouterr().err


def test_a_comparison_that_fails_writes_nothing(tmp_path: Path) -> None:
    """A network whose labels depend on the run cannot be checked."""
    noise = helper.make_node("RandomNormalLike", ["pixel_values"], ["noise"])
    conv = helper.make_node("Conv", ["noise", "weights", "bias"], ["logits"])
    model = network([noise, conv], ["n", 3, *SIZE], [output("logits")], CONV)
    source, target = tmp_path / "foreign.onnx", tmp_path / "adopted.onnx"
    onnx.save(model, source)
    command = [str(source), "-o", str(target), "--classes", ",".join(NAMES), *IMAGENET]
    assert adopt.main(command) == 1
    assert not target.exists()
