"""Weights of torchvision and timm: the same features and logits as in the original library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from model import checkpoint
from model.checkpoint import BackboneCard
from model.convert import from_torchvision
from model.convert.__main__ import main
from model.convert.accounting import ConvertError
from model.network.backbones.features import Features
from model.network.config import ModelConfig
from model.network.deeplab import BACKBONES
from model.network.layers import resize
from tests.model.nets import batch, shake, worst


def features(path: Path, image: Tensor, output_stride: int) -> Features:
    """Run a converted backbone on an image in [0, 255]."""
    card = checkpoint.read_any_card(path)
    assert isinstance(card, BackboneCard)
    config = ModelConfig(backbone=card.backbone, output_stride=output_stride)
    backbone = BACKBONES[card.backbone](config)
    backbone.load_state_dict(checkpoint.read_weights(path))
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (card.mean, card.std))
    with torch.inference_mode():
        found = backbone.eval()((image - mean) / std)
    assert isinstance(found, Features)
    return found


def convert(kind: str, net: nn.Module, folder: Path) -> Path:
    """Save a network's state dict as its users do, and convert it."""
    torch.save(net.state_dict(), folder / "source.pth")
    assert main([kind, str(folder / "source.pth"), str(folder / "net")]) == 0
    return folder / "net"


@pytest.mark.slow
@pytest.mark.parametrize("depth", [50, 101])
def test_torchvision_deeplab_has_the_same_logits(depth: int, tmp_path: Path) -> None:
    """Its ASPP's order, its additional 3x3, output stride 8 and unaligned corners are kept."""
    from torchvision.models import segmentation

    build = getattr(segmentation, f"deeplabv3_resnet{depth}")
    theirs = shake(build(weights=None, weights_backbone=None, num_classes=21, aux_loss=True))
    ours = checkpoint.load(convert("torchvision", theirs, tmp_path))
    image = batch(97, 120)
    with torch.inference_mode():
        logits = resize(ours(image), (97, 120), align_corners=False)
        normalised = (image - ours.mean) / ours.std
        assert worst(logits, theirs(normalised)["out"]) < 1e-3
    assert ours.config.align_corners is False
    assert ours.config.mean == pytest.approx([255 * v for v in (0.485, 0.456, 0.406)])


@pytest.mark.slow
def test_torchvision_deeplab_on_mobilenet_has_the_same_logits(tmp_path: Path) -> None:
    """Output stride 16; a block that gives up its stride is dilated itself."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    theirs = shake(deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, aux_loss=True))
    ours = checkpoint.load(convert("torchvision", theirs, tmp_path))
    image = batch(97, 120)
    with torch.inference_mode():
        logits = resize(ours(image), (97, 120), align_corners=False)
        normalised = (image - ours.mean) / ours.std
        assert worst(logits, theirs(normalised)["out"]) < 1e-3
    assert (ours.config.output_stride, ours.config.rates) == (16, (12, 24, 36))


@pytest.mark.slow
def test_torchvision_mobilenet_has_the_same_features(tmp_path: Path) -> None:
    """An ImageNet MobileNetV3-Large, at output stride 32 as it was trained."""
    from torchvision.models import mobilenet_v3_large

    theirs = shake(mobilenet_v3_large(weights=None))
    path = convert("torchvision", theirs, tmp_path)
    image = batch(65, 97)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x: Any = (image / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    stages = []
    with torch.inference_mode():
        for stage in theirs.features:  # type: ignore[union-attr]
            x = stage(x)
            stages.append(x)
    ours = features(path, image, 32)
    assert worst(ours.conv2, stages[3]) < 1e-4
    assert worst(ours.conv3, stages[6]) < 1e-4
    assert worst(ours.high, stages[16]) < 1e-3


@pytest.mark.slow
def test_torchvision_small_mobilenet_is_named(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v3_small

    torch.save(mobilenet_v3_small(weights=None).state_dict(), tmp_path / "small.pth")
    with pytest.raises(ConvertError, match="this is MobileNetV3-Small; only MobileNetV3-Large"):
        from_torchvision.convert(tmp_path / "small.pth")


@pytest.mark.slow
def test_torchvision_resnet_has_the_same_features(tmp_path: Path) -> None:
    """An ImageNet ResNet, at output stride 32 as it was trained."""
    from torchvision.models import resnet50

    theirs = shake(resnet50(weights=None))
    path = convert("torchvision", theirs, tmp_path)
    image = batch(65, 97)
    stages = (theirs.conv1, theirs.bn1, theirs.relu, theirs.maxpool, theirs.layer1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        low: Any = (image / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        for stage in stages:
            low = stage(low)  # type: ignore[operator]
        high = theirs.layer4(theirs.layer3(theirs.layer2(low)))  # type: ignore[operator]
    ours = features(path, image, 32)
    assert worst(ours.conv2, low) < 1e-4
    assert worst(ours.high, high) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("xception65", 16),
        ("xception71", 32),
        ("resnet101", 16),
        ("tf_efficientnet_lite0", 32),
        ("tf_efficientnet_lite1", 16),
        ("tf_efficientnet_lite2", 32),
    ],
)
def test_timm_backbone_has_the_same_features(name: str, output_stride: int, tmp_path: Path) -> None:
    """timm's own preprocessing, its own dilation for a lower output stride."""
    import timm

    theirs = shake(timm.create_model(name, pretrained=False, output_stride=output_stride))
    cfg = theirs.default_cfg
    mean, std = (torch.tensor(cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    image = batch(96, 130)  # even sides, where paddings differ
    with torch.inference_mode():
        taps = theirs.forward_intermediates(  # type: ignore[operator]
            (image / 255 - mean) / std, intermediates_only=True
        )
    ours = features(convert("timm", theirs, tmp_path), image, output_stride)
    assert worst(ours.high, taps[-1]) < 1e-3
    if name.startswith("xception"):  # timm's tap lies behind the ReLU that follows ours
        assert worst(F.relu(ours.conv2), taps[1]) < 1e-4
        assert worst(F.relu(ours.conv3), taps[2]) < 1e-4


@pytest.mark.slow
def test_safetensors_and_wrapped_state_dicts_are_read(tmp_path: Path) -> None:
    """The hub and training scripts store them like this."""
    import timm

    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
               tmp_path / "b.pth")  # fmt: skip
    for name in ("a.safetensors", "b.pth"):
        assert main(["timm", str(tmp_path / name), str(tmp_path / name[0])]) == 0
    first, second = (checkpoint.read_weights(tmp_path / name) for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"layer3.0.conv1.weight": torch.zeros(1)}, ["1 units", "resnet50 has 6"]),
        ({"features.0.weight": torch.zeros(1)}, ["holds no ResNet", "features"]),
    ],
)
def test_other_networks_are_refused_by_name(
    state: dict[str, Tensor], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names what was found and what is supported."""
    torch.save(state, tmp_path / "x.pth")
    for kind in ("timm", "torchvision"):
        assert main([kind, str(tmp_path / "x.pth"), str(tmp_path / "net")]) == 1
        message = capsys.readouterr().err
        for word in words:
            assert word in message


class Harmful:
    """Unpickling an object of this class would call a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def test_pickled_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only tensors are loaded."""
    torch.save({"x": Harmful()}, tmp_path / "x.pth")
    assert main(["torchvision", str(tmp_path / "x.pth"), str(tmp_path / "net")]) == 1
    captured = capsys.readouterr()
    assert "ran" not in captured.out.split()
    assert "holds more than tensors" in captured.err
