"""Checkpoints of other projects are converted, or the error names the project and what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import checkpoint
from model.convert import from_tensorflow, from_torchvision, state_dict
from model.convert.accounting import ConvertError


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_torchvisions_reference_script_keeps_its_options_beside_the_network(
    tmp_path: Path,
) -> None:
    weights = {"a.weight": torch.ones(2)}
    content = {"model": weights, "args": argparse.Namespace(lr=0.1), "epoch": 3}
    assert state_dict.read(saved(tmp_path / "model_3.pth", content)).keys() == weights.keys()
    nested = {"model_state": weights, "cur_itrs": 7}
    assert state_dict.read(saved(tmp_path / "best.pth", nested)).keys() == weights.keys()


@pytest.mark.parametrize("score", [np.float64(0.7), np.float32(0.7), np.int64(3)])
def test_a_score_of_numpy_beside_the_network_is_read(tmp_path: Path, score: object) -> None:
    """VainF's script saves the best mIoU so, as a float64 of NumPy."""
    content = {"model_state": {"a.weight": torch.ones(2)}, "best_score": score}
    assert state_dict.read(saved(tmp_path / "best.pth", content)).keys() == {"a.weight"}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    """Without PyTorch's advice to load the file with `weights_only=False`."""
    traced = torch.jit.trace(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 2, 2))  # type: ignore[no-untyped-call]
    traced.save(tmp_path / "net.pt")
    with pytest.raises(ConvertError, match=r"is TorchScript.*net\.state_dict\(\)"):
        state_dict.read(tmp_path / "net.pt")


def test_a_file_without_tensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="holds no tensors"):
        state_dict.read(saved(tmp_path / "empty.pth", {}))


def test_a_pickled_network_is_reported_and_not_unpickled(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"torch\.nn\.modules.*net\.state_dict\(\)"):
        state_dict.read(saved(tmp_path / "net.pth", nn.Conv2d(1, 1, 1)))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["backbone.stem.0.weight", "decode_head.conv_seg.weight"], "mmsegmentation"),
        (["backbone.layer1.0.w", "classifier.aspp.convs.0.0.weight"], "VainF.*ResNet"),
        (["backbone.low_level_features.0.0.w", "classifier.aspp.w"], "VainF.*published-weights"),
        (["backbone.conv1.weight", "aspp.aspp1.bn.weight"], "jfzhang95.*published-weights"),
        (["segformer.encoder.w", "decode_head.w"], "Hugging Face's SegFormer.*published-weights"),
        (["backbone.0.0.weight", "classifier.cbr.0.weight"], "LRASPP.*deeplabv3_mobilenet_v3"),
        (["backbone.layer1.0.w", "classifier.1.running_mean"], "torchvision's FCN.*ResNet"),
        (
            ["encoder._conv_stem.weight"],
            "segmentation_models_.*published-weights.*export.adopt",
        ),
        (["backbone.layer1.0.w", "aspp.aspp1.bn.weight"], "jfzhang95.*ResNet"),
        (["model.encoder.layer1.0.w"], r"segmentation_models.*startswith\('model.encoder.'\)"),
    ],
)
def test_networks_of_other_projects_are_named(tmp_path: Path, keys: list[str], says: str) -> None:
    state = {key: torch.ones(1) for key in keys}
    with pytest.raises(ConvertError, match=says):
        state_dict.read(saved(tmp_path / "other.pth", {"state_dict": state, "meta": {}}))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model.net.", ""])
def test_prefixes_that_frameworks_add_to_names_are_removed(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path / "a.pth", {f"{prefix}layer1.w": torch.ones(1)})
    assert list(state_dict.read(path)) == ["layer1.w"]


@pytest.mark.parametrize("content", [b"<!DOCTYPE html>", b"version https://git-lfs", b""])
def test_a_web_page_or_lfs_pointer_in_place_of_the_file_is_named(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ConvertError, match="no file of PyTorch's: it begins with"):
        state_dict.read(tmp_path / "a.pth")


def test_a_file_without_a_resnet_says_what_it_holds(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"stem.w": torch.ones(1)})
    with pytest.raises(ConvertError, match=r"holds no ResNet .* begin with stem"):
        from_torchvision.convert(path)


def test_a_foreign_file_in_place_of_a_checkpoint_leads_to_the_converter(tmp_path: Path) -> None:
    for name in ("a.pth", "b.safetensors", "c.ckpt.data-00001-of-00002"):
        (tmp_path / name).touch()
        with pytest.raises(checkpoint.CheckpointError, match=r"converted first.*model\.convert"):
            checkpoint.read_any_card(tmp_path / name)


@pytest.mark.slow
def test_the_advice_for_an_encoder_of_smp_works(tmp_path: Path) -> None:
    """The line of code in the error, run as it stands, makes a file that can be converted."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    with torch.device("meta"):
        shapes = smp.DeepLabV3Plus("resnet50", encoder_weights=None).state_dict()
    state: dict[str, Tensor] = {key: torch.ones(value.shape) for key, value in shapes.items()}
    with pytest.raises(ConvertError, match="segmentation_models_pytorch") as caught:
        state_dict.read(saved(tmp_path / "smp.pth", state))
    line = str(caught.value).partition("save ")[2].partition(" and convert")[0]
    path = saved(tmp_path / "encoder.pth", eval(line, {"state": state}))
    assert from_torchvision.convert(path).card.model_dump()["backbone"] == "resnet50"


def test_variables_of_clones_and_fake_quantisation_are_handled() -> None:
    ones = np.ones(1)
    found = from_tensorflow._of_one_clone({"clone_0/a/weights": ones, "clone_1/a/weights": ones})
    assert list(found) == ["a/weights"]
    names = ["MobilenetV2/Conv/weights_quant/min", "MobilenetV2/Conv/act_quant/max"]
    with pytest.raises(ConvertError, match=r"fake quantisation \(2 variables.*--precision int8"):
        from_tensorflow.convert_variables(
            dict.fromkeys(names, ones), from_tensorflow.ConversionOptions(), Path("model.ckpt")
        )
