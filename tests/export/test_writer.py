"""An exported file agrees with its checkpoint, or is not written."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from export import __main__ as cli
from export import writer
from export.graph import LabelGraph
from export.parity import ParityError
from export.rewrite import rewritten
from export.writer import ExportOptions, PolicyError, export
from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import VOC_CLASSES, voc_palette
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import label_map, probabilities
from service.inference.contract import INPUT, LABELS, METADATA_KEY, OPTIONAL, Parity, parse
from service.inference.encoding import of_one_size
from service.inference.engine import Engine, EngineOptions
from tests.export.conftest import CONFIG, SIZE, save_random
from tests.model import voc_folder


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("kind", ["exported", "phased"])
def test_labels_are_pytorchs_at_batch_sizes_unseen_at_export(
    tiny: Path, kind: str, batch: int, request: pytest.FixtureRequest
) -> None:
    engine = Engine(request.getfixturevalue(kind), EngineOptions("cpu"))
    shape = (batch, *engine.input_size, 3)
    images = np.random.default_rng(batch).integers(0, 256, shape, np.uint8)
    labels = engine.run(images)
    with torch.inference_mode():
        truth, _ = LabelGraph(checkpoint.load(tiny))(torch.from_numpy(images))
    assert len(np.unique(labels)) > 1
    assert (labels == truth.numpy()).mean() > 0.999


@pytest.mark.slow
def test_the_file_is_one_uint8_graph_with_its_contract(tiny: Path, exported: Path) -> None:
    model = onnx.load(exported)
    (image,), (labels,) = model.graph.input, model.graph.output
    assert (image.name, labels.name) == (INPUT, LABELS)
    for value, last in ((image, 3), (labels, SIZE[1])):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert value.type.tensor_type.shape.dim[0].dim_param
        assert value.type.tensor_type.shape.dim[-1].dim_value == last
    contract = parse({prop.key: prop.value for prop in model.metadata_props})
    assert (contract.input.height, contract.input.width) == SIZE
    assert contract.input.pad == (128, 128, 128)
    assert contract.checkpoint_sha256 == checkpoint.digest(tiny)
    assert contract.parity.agreement > 0.999
    assert contract.classes == checkpoint.read_card(tiny).classes


@pytest.mark.slow
def test_the_file_contains_nothing_about_the_machine_that_made_it(exported: Path) -> None:
    data = exported.read_bytes()
    assert b".py" not in data
    assert {prop.key for prop in onnx.load(exported).metadata_props} == {METADATA_KEY}


@pytest.mark.slow
def test_repeated_exports_are_equal_byte_for_byte(
    tiny: Path, exported: Path, tmp_path: Path
) -> None:
    export(tiny, tmp_path / "again.onnx", ExportOptions())
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.slow
def test_a_file_that_disagrees_with_pytorch_is_never_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = checkpoint.load(save_random(tmp_path / "other", seed=1))
    monkeypatch.setattr(
        writer, "rewritten", lambda _, **options: rewritten(other, **options)
    )  # the wrong weights
    with pytest.raises(ParityError, match=r"99\.9% are required"):
        export(tiny, tmp_path / "bad.onnx", ExportOptions())
    assert not list(tmp_path.glob("*bad*"))


@pytest.mark.slow
def test_the_output_stride_can_be_chosen_at_export(tiny: Path, tmp_path: Path) -> None:
    code = cli.main([str(tiny), "-o", str(tmp_path / "os8.onnx"), "--output-stride", "8"])
    assert code == 0
    assert Engine(tmp_path / "os8.onnx", EngineOptions("cpu")).contract.output_stride == 8


@pytest.mark.slow
def test_scales_flip_and_confidence_are_in_the_graph(tiny: Path, tmp_path: Path) -> None:
    """Labels are those of model.predict with the same options; weights are stored once."""
    path = tmp_path / "ms.onnx"
    options = ExportOptions(scales=(0.5, 1.0), flip=True, confidence=True)
    contract = export(tiny, path, options)
    assert (contract.scales, contract.flip, contract.confidence) == ((0.5, 1.0), True, True)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    labels, confidence = session.run(None, {INPUT: image[None]})
    net = checkpoint.load(tiny)
    assert (labels[0] == label_map(net, image, (0.5, 1.0), flip=True)).mean() > 0.999
    best = probabilities(net, image, (0.5, 1.0), flip=True).max(0) * 255
    assert np.abs(confidence[0] - best).max() <= 1
    single = sum(parameter.numel() for parameter in net.parameters()) * 4
    assert path.stat().st_size < 2.5 * single  # four passes, with the weights stored once


@pytest.mark.slow
def test_a_dynamic_file_takes_any_size(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    contract = export(tiny, path, ExportOptions(policy="dynamic"))
    assert contract.input.policy == "dynamic"
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    graph = LabelGraph(checkpoint.load(tiny))
    for shape in ((1, 33, 33), (2, 50, 77), (1, 128, 96)):
        images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        with torch.inference_mode():
            truth, _ = graph(torch.from_numpy(images))
        (labels,) = session.run(None, {INPUT: images})
        assert (labels == truth.numpy()).mean() > 0.999, shape


@pytest.mark.slow
def test_an_aligned_file_takes_the_sizes_of_its_contract(tiny: Path, aligned: Path) -> None:
    """Its labels and probabilities are those of the network on photos padded to that size."""
    contract = Engine(aligned, EngineOptions("cpu")).contract
    assert (contract.input.policy, contract.input.multiple) == ("aligned", 16)
    assert contract.input.least == (33, 49)
    session = ort.InferenceSession(aligned, providers=["CPUExecutionProvider"])
    assert [each.shape[-2:] for each in session.get_outputs()] == [
        *[["height", "width"]] * 2,
        ["rows", "columns"],
    ]
    graph = LabelGraph(checkpoint.load(tiny), confidence=True, probabilities=True)
    for shape in ((1, 65, 97), (2, 33, 97), (1, 65, 49), (3, 49, 81)):
        images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        with torch.inference_mode():
            labels, _, *others = (each.numpy() for each in graph(torch.from_numpy(images)))
        found = session.run(None, {INPUT: images})
        assert (found[0] == labels).mean() > 0.999, shape
        for got, truth in zip(found[1:], others, strict=True):
            assert got.shape == truth.shape
            assert np.abs(got.astype(int) - truth).max() <= 1
        # The same labels alone: outputs that are not requested have no image.
        alone = session.run(
            [LABELS], {INPUT: images} | dict.fromkeys(OPTIONAL.values(), np.array(False))
        )
        assert (alone[0] == found[0]).all()


@pytest.mark.slow
def test_an_aligned_file_at_one_size_computes_no_shapes(aligned: Path) -> None:
    """That is how it runs on a GPU: only the batch is unknown when ONNX Runtime optimizes it."""
    size = (65, 97)
    data = of_one_size(aligned.read_bytes(), INPUT, size)
    arithmetic = {"Shape", "Squeeze", "Min", "Max"}
    for each, expected in ((aligned.read_bytes(), True), (data, False)):
        model = optimized(each, size)
        operators = Counter(node.op_type for node in model.graph.node)
        assert bool(operators["Squeeze"]) is expected
        assert expected or operators.keys() & arithmetic <= {"Shape"}
        assert expected or operators["Shape"] <= 1  # of the batch


@pytest.mark.slow
def test_a_network_that_cannot_be_aligned_is_refused(tiny: Path, tmp_path: Path) -> None:
    """The sides are no multiples plus one, or too small to vary."""
    for size in (None, (65, 96), (49, 97), (65, 65)):
        with pytest.raises(PolicyError, match=r"\d+x\d+ cannot be aligned"):
            export(tiny, tmp_path / "no.onnx", ExportOptions(size=size, policy="aligned"))
    arguments = [str(tiny), "-o", str(tmp_path / "no.onnx"), "--size", "aligned"]
    assert cli.main(arguments) == 2
    assert not list(tmp_path.iterdir())


def optimized(data: bytes, size: tuple[int, int]) -> onnx.ModelProto:
    """The graph after ONNX Runtime has computed what does not depend on the photo."""
    config = ort.SessionOptions()
    config.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for name, side in zip(("height", "width"), size, strict=True):
        config.add_free_dimension_override_by_name(name, side)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        config.optimized_model_filepath = file.name
        ort.InferenceSession(data, config, providers=["CPUExecutionProvider"])
        return onnx.load(file.name)


@pytest.mark.slow
def test_half_precision_stores_weights_in_float16(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    contract = export(tiny, path, ExportOptions(precision="fp16"))
    assert contract.parity.agreement > 0.995
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert (
        path.stat().st_size
        < 0.75 * 4 * sum(parameter.numel() for parameter in checkpoint.load(tiny).parameters())
        + 150_000
    )  # bytes for the graph itself


@pytest.mark.slow
def test_half_precision_says_how_much_miou_it_changes(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"num_classes": 21})
    card = Card(model=config, classes=VOC_CLASSES, palette=voc_palette(21))
    source = checkpoint.save(tmp_path / "net", DeepLabV3Plus(config).state_dict(), card)
    data = voc_folder.make(tmp_path / "data", split="val")
    target = tmp_path / "half.onnx"
    arguments = [str(source), "-o", str(target), "--precision", "fp16", "--data", str(data)]
    assert cli.main(arguments) == 0
    measured = Engine(target, EngineOptions("cpu")).contract.parity
    assert measured.miou_change == pytest.approx(0, abs=0.015)
    assert measured.miou_images == 6


def test_a_data_set_of_other_classes_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = voc_folder.make(tmp_path / "data", split="val")
    target = tmp_path / "x.onnx"
    arguments = [str(tiny), "-o", str(target), "--precision", "fp16", "--data", str(data)]
    assert cli.main(arguments) == 2
    assert "5 classes" in capsys.readouterr().err


@pytest.mark.slow
def test_a_write_that_fails_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    contract = Engine(exported, EngineOptions("cpu")).contract
    (tmp_path / "x.parity.json").mkdir()
    with pytest.raises(OSError, match=r"x\.parity\.json"):
        writer.write(onnx.load(exported), contract, tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.parity.json"]


@pytest.mark.slow
def test_the_certificate_lies_beside_the_file(exported: Path) -> None:
    certificate = Parity.model_validate_json(exported.with_suffix(".parity.json").read_bytes())
    contract = Engine(exported, EngineOptions("cpu")).contract
    assert certificate == contract.parity


def test_errors_name_the_mistake(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(tmp_path / "none"), "-o", str(tmp_path / "x.onnx")]) == 1
    assert "none.json does not exist" in capsys.readouterr().err
    for size, says in (("20,20", "at least 33"), ("513", "not a size H,W")):
        with pytest.raises(SystemExit, match="2"):
            cli.main([str(tiny), "-o", str(tmp_path / "x.onnx"), "--size", size])
        assert says in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main([str(tiny), "-o", str(tmp_path)])
    assert "is a folder" in capsys.readouterr().err
