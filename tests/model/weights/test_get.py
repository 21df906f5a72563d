"""From a published file to a checkpoint and a served file: the whole command on tiny networks."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint
from model.convert.accounting import Converted, ConvertError
from model.network.deeplab import DeepLabV3Plus
from model.weights import selfcheck, source
from model.weights.__main__ import main
from model.weights.catalogue import LEFT_OUT, WEIGHTS, Weights
from model.weights.digests import DigestError
from model.weights.digests import check as compare
from model.weights.get import get
from model.weights.selfcheck import SelfCheckError
from tests.model.convert import bundles
from tests.model.convert.test_from_tensorflow import variables_of
from tests.model.nets import tiny
from tests.model.weights.server import Behaviour, serving
from tests.shared import SHARED

TEACHER = SHARED / "teachers" / "deeplabv3_mnv2_pascal_quant.tflite"
CAT, PERSON = 8, 15


def segmenting() -> DeepLabV3Plus:
    """A tiny network of VOC's classes whose classifier was fitted to the sample photo."""
    net = tiny(21, decoder_channels=64, low_level_channels=32)  # enough features to fit
    photo = torch.from_numpy(np.asarray(Image.open(selfcheck.FOLDER / "sample.jpg")).copy())
    truth = torch.from_numpy(np.asarray(Image.open(selfcheck.FOLDER / "sample.png")).copy())
    features: list[torch.Tensor] = []
    net.logits.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.inference_mode():
        logits = net(photo.permute(2, 0, 1)[None].float())
    height, width = logits.shape[2:]
    small = truth[None, None].float()
    wanted = torch.nn.functional.interpolate(small, (height, width), mode="nearest")[0, 0].long()
    counted = wanted != selfcheck.VOID
    x = features[0][0].permute(1, 2, 0)[counted]
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    y = torch.nn.functional.one_hot(wanted[counted], 21).float()
    solution = torch.linalg.lstsq(x, y).solution
    with torch.no_grad():
        net.logits.weight.copy_(solution[:-1].T[:, :, None, None])
        assert net.logits.bias is not None
        net.logits.bias.copy_(solution[-1])
    return net


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The checkpoint of such a network, as research/deeplab's archives hold one."""
    folder = tmp_path_factory.mktemp("published")
    slots = {"logits/semantic/weights/Momentum": np.zeros((1, 1, 64, 21), np.float32)}
    variables = variables_of(segmenting()) | slots | {"global_step": np.int64(30000)}
    bundles.write(folder / "model.ckpt-30000", variables)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def packed(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def archive_of(path: Path, files: dict[str, bytes]) -> Path:
    inside: dict[str, bytes | tarfile.TarInfo] = {f"deeplab/{k}": v for k, v in files.items()}
    return packed(path, inside | {"deeplab/frozen_inference_graph.pb": b"not read"})


def published(content: bytes, address: str = "http://127.0.0.1:1", **fields: Any) -> Weights:
    name = "mobilenetv2-voc-trainval"
    update = {"url": f"{address}/net.tar.gz", "size": len(content), **fields}
    return WEIGHTS[name].model_copy(update=update)


@pytest.mark.slow
def test_a_download_becomes_a_checkpoint_with_its_card(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    """Its source, licence, digest and published mIoU are in the card; the digest is recorded."""
    content = archive_of(tmp_path / "net.tar.gz", files).read_bytes()
    said: list[str] = []
    with serving(Behaviour(content)) as address:
        weights = published(content, address)
        written = get(weights, tmp_path / "out", say=said.append)
    net = segmenting()
    loaded = checkpoint.load(written).state_dict()
    assert all(
        torch.equal(loaded[key], value)
        for key, value in net.state_dict().items()
        if "num_batches" not in key
    )
    card = checkpoint.read_card(written)
    digest = hashlib.sha256(content).hexdigest()
    assert card.training["sha256"] == digest
    assert card.training["published_miou"] == weights.miou
    assert card.training["dataset"] == "voc"
    assert weights.url in card.source
    assert "Apache-2.0" in card.source
    assert card.classes[CAT] == "cat"
    record = tmp_path / "out" / "downloads" / "net.tar.gz.sha256"
    assert record.read_text() == f"{digest}  net.tar.gz\n"
    assert "none is known for this file, so this first one is trusted" in said[1]
    assert said[-1].startswith(f"recorded the digest in {record}")
    assert any("mIoU" in line and "(background, cat, person)" in line for line in said)
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = {f"{weights.name}.safetensors", f"{weights.name}.json"}
    assert left == names | {"net.tar.gz", "net.tar.gz.sha256"}


@pytest.mark.slow
def test_a_second_run_downloads_nothing_and_compares_with_the_record(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    content = archive_of(tmp_path / "net.tar.gz", files).read_bytes()
    how = Behaviour(content)
    with serving(how) as address:
        for _ in range(2):
            said: list[str] = []
            get(published(content, address), tmp_path / "out", say=said.append)
    assert len(how.seen) == 1
    assert "as recorded at the first download" in said[0]


def test_a_download_of_another_digest_is_refused_and_nothing_stays(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    """A pinned digest, whole or its first digits, and one that was recorded."""
    content = archive_of(tmp_path / "net.tar.gz", files).read_bytes()
    record = tmp_path / "recorded" / "downloads" / "net.tar.gz.sha256"
    record.parent.mkdir(parents=True)
    record.write_text(f"{'0' * 64}  net.tar.gz\n")
    pins = {"prefix": {"sha256": "12345678"}, "whole": {"sha384": "1" * 96}, "recorded": {}}
    for name, pin in pins.items():
        with serving(Behaviour(content)) as address, pytest.raises(DigestError, match="deleted"):
            get(published(content, address, **pin), tmp_path / name)
        kept = {path for path in (tmp_path / name).rglob("*") if path.is_file()}
        assert kept == ({record} if name == "recorded" else set())


def test_pins_say_what_they_cover(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    said = compare(tmp_path / "file", published(b"abc", sha256=digest[:8]), tmp_path / "none")
    assert said.endswith("as pinned; of it the first 8 digits are known")
    assert compare(tmp_path / "file", published(b"abc", sha256=digest), tmp_path / "none").endswith(
        ": as pinned"
    )
    with pytest.raises(DigestError, match="has 3 bytes, the published file 4"):
        compare(tmp_path / "file", published(b"abcd", exact_size=True), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_damaged_download_that_was_kept_is_fetched_again(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    content = archive_of(tmp_path / "net.tar.gz", files).read_bytes()
    pin = hashlib.sha256(content).hexdigest()
    kept = tmp_path / "out" / "downloads" / "net.tar.gz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content[:-1])
    said: list[str] = []
    with serving(Behaviour(content)) as address:
        get(published(content, address, sha256=pin), tmp_path / "out", say=said.append)
    assert "downloading it again" in said[0]
    assert kept.read_bytes() == content


@pytest.mark.slow
def test_a_file_that_does_not_convert_is_not_recorded_as_the_one_to_expect(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    """Otherwise a bad first download would make every later good one fail."""
    good = archive_of(tmp_path / "net.tar.gz", files).read_bytes()
    how = Behaviour(good[:-3000] + b"x" * 3000)
    with serving(how) as address:
        weights = published(good, address)
        with pytest.raises(ConvertError):
            get(weights, tmp_path / "out", say=lambda _: None)
        kept = tmp_path / "out" / "downloads" / "net.tar.gz"
        assert [each.name for each in kept.parent.iterdir()] == ["net.tar.gz"]
        kept.unlink()
        how.content = good
        assert get(weights, tmp_path / "out", say=lambda _: None).is_file()


def test_a_given_file_of_another_digest_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "wrong.tflite"
    given.write_bytes(b"x" * WEIGHTS["coral-mnv2-voc"].size)
    arguments = ["get", "coral-mnv2-voc", "--from", str(given), "-o", str(tmp_path / "out")]
    assert main(arguments) == 1
    assert "is not the file it should be" in capsys.readouterr().err
    assert given.exists()
    assert not (tmp_path / "out").exists()


def test_members_that_lead_elsewhere_are_not_written(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    """Files with such paths are written into the folder itself. Links are ignored."""
    (index,) = (name for name in files if name.endswith(".index"))
    inside = {
        f"../../{name}" if name == index else f"/etc/{name}": content
        for name, content in files.items()
    }
    link, hard = tarfile.TarInfo("deeplab/other.index"), tarfile.TarInfo("deeplab/hard.index")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/passwd"
    path = packed(
        tmp_path / "a.tar.gz", {**inside, link.name: link, hard.name: hard, "../evil": b""}
    )
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    assert source.unpack(path, folder) == folder / "model.ckpt-30000"
    assert {each.name for each in folder.iterdir()} == set(files)
    assert {each.name for each in tmp_path.iterdir()} == {"a.tar.gz", "deep"}


def test_an_archive_of_a_frozen_graph_alone_is_converted_from_it(tmp_path: Path) -> None:
    content = b"a graph"
    path = packed(tmp_path / "a.tar.gz", {"net/frozen_inference_graph.pb": content})
    (tmp_path / "out").mkdir()
    found = source.unpack(path, tmp_path / "out")
    assert (found.name, found.read_bytes()) == ("frozen_inference_graph.pb", content)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"README": b""}, "neither a checkpoint nor a frozen graph"),
        ({"a/m.index": b"", "b/m.index": b""}, "twice"),
        ({"a.index": b"", "b.index": b""}, "several checkpoints: a, b"),
    ],
)
def test_archives_without_one_checkpoint_are_refused(
    members: dict[str, bytes | tarfile.TarInfo], says: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConvertError, match=says):
        source.unpack(packed(tmp_path / "a.tar.gz", members), tmp_path / "out")


def test_a_damaged_archive_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = archive_of(tmp_path / "net.tar.gz", files)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ConvertError, match=r"net\.tar\.gz is damaged"):
        source.convert(published(b"x"), path, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["net.tar.gz"]


@pytest.mark.slow
def test_weights_that_do_not_segment_fail_the_self_check(tmp_path: Path) -> None:
    """Shuffled channels, numbers that are not finite, one class everywhere."""
    good = segmenting()
    card = checkpoint.Card(model=good.config, classes=WEIGHTS_CLASSES, palette=((0, 0, 0),) * 21)
    state = dict(good.state_dict())
    found = selfcheck.run(Converted(state, card))
    assert found.miou is not None
    assert found.miou > selfcheck.PLAUSIBLE
    bad = {
        "is plausible": {"logits.weight": state["logits.weight"].roll(1, 0),
                         "logits.bias": good.state_dict()["logits.bias"].roll(1)},
        "not all finite": {"logits.bias": state["logits.bias"] * float("nan")},
        "whole photo is aeroplane": {"logits.bias": 1e6 * torch.eye(21)[1]},
    }  # fmt: skip
    for says, change in bad.items():
        with pytest.raises(SelfCheckError, match=says):
            selfcheck.run(Converted(state | change, card))


WEIGHTS_CLASSES = tuple(
    {0: "background", CAT: "cat", PERSON: "person", 1: "aeroplane"}.get(index, f"c{index}")
    for index in range(21)
)


def test_a_backbone_is_checked_and_stored_as_a_backbone(tmp_path: Path) -> None:
    """Trained on ImageNet, or on COCO with a head whose classifier is missing."""
    variables = {k: v for k, v in variables_of(tiny(21)).items() if not k.startswith("logits/")}
    bundles.write(tmp_path / "model.ckpt", variables)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    archive = archive_of(tmp_path / "net.tar.gz", files)
    said: list[str] = []
    written = get(published(b"x", dataset="imagenet"), tmp_path, archive, say=said.append)
    card = checkpoint.read_any_card(written)
    assert isinstance(card, checkpoint.BackboneCard)
    assert "net.tar.gz" in card.source
    assert any("finite numbers" in line for line in said)


def test_the_list_has_every_name_and_what_is_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*WEIGHTS, *LEFT_OUT])
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [*WEIGHTS]
    assert all(row["url"].startswith("https://") and row["licence"] for row in rows)


def test_presets_start_from_weights_that_get_writes() -> None:
    """What a preset takes from `weights/` is there after `model.weights get` of that name."""
    presets = Path(selfcheck.__file__).parents[1] / "presets"
    named = {
        name
        for path in presets.glob("*.toml")
        for name in re.findall(r'"weights/([^"]+)"', path.read_text(encoding="utf-8"))
    }
    assert len(named) >= 4
    assert named <= set(WEIGHTS)


@pytest.mark.slow
def test_torchvisions_entries_are_torchvisions_own() -> None:
    """Address, size, figures and the digest in the name, against the library itself."""
    from torchvision.models import segmentation

    for depth in (50, 101):
        theirs = getattr(segmentation, f"DeepLabV3_ResNet{depth}_Weights").DEFAULT
        ours = WEIGHTS[f"torchvision-resnet{depth}"]
        assert ours.url == theirs.url
        assert ours.sha256 == theirs.url.rpartition("-")[2].removesuffix(".pth")
        assert abs(ours.size / (1 << 20) - theirs.meta["_file_size"]) < 0.001
        (metrics,) = theirs.meta["_metrics"].values()
        assert ours.miou.startswith(str(metrics["miou"]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["xception65-voc-trainau"], "did you mean xception65-voc-trainaug?"),
        (["xception71_dpc_cityscapes_trainfine"], "dense prediction cell"),
        (["resnet101-imagenet", "--export"], "no head to export"),
        (["coral-mnv2-voc", "--from", "nowhere.tflite"], "--from nowhere.tflite is no file"),
    ],
)
def test_wrong_options_are_usage_errors(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["get", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not TEACHER.exists(), reason=f"{TEACHER} does not exist; set DEEPLAB_SHARED")
def test_corals_file_becomes_a_served_model(tmp_path: Path) -> None:
    """One command: pinned digest, self-check, and an ONNX file that agrees with PyTorch."""
    arguments = ["get", "coral-mnv2-voc", "--from", str(TEACHER), "-o", str(tmp_path), "--export"]
    assert main(arguments) == 0
    assert (tmp_path / "coral-mnv2-voc.onnx").is_file()
    parity = json.loads((tmp_path / "coral-mnv2-voc.parity.json").read_text())
    assert parity["agreement"] > 0.999
