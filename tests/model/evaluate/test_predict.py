"""Label maps: the evaluation procedure compared with NumPy, and the command line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import voc_palette
from model.data.photo import read_photo
from model.evaluate.pictures import colored
from model.evaluate.predict import main
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import (
    average_probabilities,
    label_map,
    probabilities,
    served_map,
    window_starts,
)
from tests.model.nets import photo, tiny

Array = NDArray[np.float64]
SCALES = (0.5, 0.75, 1.0, 1.75)


def corner_aligned(image: Array, height: int, width: int) -> Array:
    """(H, W, C) -> (height, width, C), a matrix of interpolation weights per axis."""

    def weights(inputs: int, outputs: int) -> Array:
        grid = np.linspace(0, inputs - 1, outputs)
        return np.asarray(np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(inputs))))

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    resized = np.tensordot(rows, image, 1)  # (height, W, C)
    return np.asarray(np.einsum("jw,iwc->ijc", columns, resized))


def logits_of(net: DeepLabV3Plus, image: Array) -> Array:
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        return np.asarray(net(x)[0].permute(1, 2, 0), np.float64)


def oracle(
    net: DeepLabV3Plus, image: NDArray[np.uint8], scales: tuple[float, ...], flips: tuple[bool, ...]
) -> Array:
    """The reference's evaluation in NumPy: mean probabilities (H, W, K) at the photo's size."""
    crop = net.config.crop_size
    height, width = max(image.shape[0], crop[0]), max(image.shape[1], crop[1])
    padded = np.full((height, width, 3), 127.5)
    padded[: image.shape[0], : image.shape[1]] = image
    total = np.zeros((height, width, net.config.num_classes))
    for scale in scales:
        side = int((height - 1) * scale + 1), int((width - 1) * scale + 1)
        for flip in flips:
            x = corner_aligned(padded, *side)
            logits = logits_of(net, x[:, ::-1].copy() if flip else x)
            logits = logits[:, ::-1] if flip else logits
            factor = max(1.0, scale) / net.stride
            between = int((height - 1) * factor + 1), int((width - 1) * factor + 1)
            logits = corner_aligned(corner_aligned(logits, *between), height, width)
            exponentials = np.exp(logits - logits.max(2, keepdims=True))
            total += exponentials / exponentials.sum(2, keepdims=True)
    return (total / len(scales) / len(flips))[: image.shape[0], : image.shape[1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "decoder"),
    [((49, 60), True), ((80, 97), True), ((65, 65), False), ((66, 40), False)],
)
def test_multi_scale_and_flip_is_the_references_procedure(
    size: tuple[int, int], decoder: bool
) -> None:
    """Padding, scales below and above 1, mirroring, two-step resizing, mean of probabilities."""
    net = tiny(decoder=decoder)
    image = photo(*size)
    expected = oracle(net, image, SCALES, (False, True))
    ours = probabilities(net, image, SCALES, flip=True)
    assert ours.shape == (5, *size)
    assert np.abs(ours.transpose(1, 2, 0) - expected).max() < 1e-4
    labels = label_map(net, image, SCALES, flip=True)
    assert labels.dtype == np.uint8
    assert (labels == expected.argmax(2)).mean() > 0.999
    assert len(np.unique(labels)) > 1


@pytest.mark.slow
def test_single_scale_label_map_is_the_argmax_of_the_probabilities() -> None:
    """A single pass skips the softmax, which does not change the order of the classes."""
    net = tiny()
    image = photo(50, 70)
    labels = label_map(net, image)
    assert (labels == oracle(net, image, (1.0,), (False,)).argmax(2)).mean() > 0.999
    assert (labels == probabilities(net, image).argmax(0)).all()


@pytest.mark.slow
def test_crop_size_pads_smaller_photos_and_leaves_larger_ones() -> None:
    """The padding is the mean pixel at the bottom and right, and can be turned off."""
    net = tiny()
    image = photo(40, 70)
    padded = np.full((65, 70, 3), 127, np.uint8)
    padded[:40] = image
    inside = probabilities(net, image)
    assert np.allclose(inside, probabilities(net, padded)[:, :40], atol=1e-2)  # 127 for 127.5
    bare = probabilities(net, image, crop_size=(1, 1))
    assert np.abs(inside - bare).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_any_output_stride_with_all_scales_is_the_references_procedure(stride: int) -> None:
    """The paper's six scales and flip, the same weights at every output stride."""
    net = tiny(output_stride=stride)
    image = photo(70, 60)
    scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    expected = oracle(net, image, scales, (False, True))
    ours = probabilities(net, image, scales, flip=True)
    assert np.abs(ours.transpose(1, 2, 0) - expected).max() < 1e-4


@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.9])
@pytest.mark.parametrize(("side", "window"), [(65, 65), (66, 65), (130, 65), (131, 65), (500, 65)])
def test_windows_cover_every_pixel_and_overlap_enough(
    side: int, window: int, overlap: float
) -> None:
    starts = window_starts(side, window, overlap)
    covered = np.zeros(side, int)
    for start in starts:
        covered[start : start + window] += 1
    assert starts[0] == 0
    assert starts[-1] + window == side
    assert covered.min() >= 1
    assert all(a + window - b >= int(overlap * window) for a, b in pairwise(starts))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "overlap"), [((150, 100), 1 / 3), ((40, 140), 0.5)])
def test_sliding_windows_average_probabilities(size: tuple[int, int], overlap: float) -> None:
    """Each window is predicted like a separate photo; a loop over pixels combines them."""
    net = tiny()
    image = photo(*size)
    padded = np.full((max(size[0], 65), max(size[1], 65), 3), 127.5)
    padded[: size[0], : size[1]] = image
    total, times = np.zeros((5, *padded.shape[:2])), np.zeros(padded.shape[:2])
    for top in window_starts(padded.shape[0], 65, overlap):
        for left in window_starts(padded.shape[1], 65, overlap):
            window = padded[top : top + 65, left : left + 65]
            x = torch.from_numpy(window).permute(2, 0, 1)[None].float()
            with torch.inference_mode():
                found = average_probabilities(net, x, (0.75, 1.0), flip=True)[0].numpy()
            for row, column in np.ndindex(65, 65):
                total[:, top + row, left + column] += found[:, row, column]
                times[top + row, left + column] += 1
    expected = (total / times)[:, : size[0], : size[1]]
    ours = probabilities(net, image, (0.75, 1.0), flip=True, overlap=overlap)
    assert np.abs(ours - expected).max() < 1e-6
    assert np.abs(ours.sum(0) - 1).max() < 1e-5
    labels = label_map(net, image, (0.75, 1.0), flip=True, overlap=overlap)
    assert (labels == ours.argmax(0)).all()
    whole = probabilities(net, image, (0.75, 1.0), flip=True)
    assert np.abs(ours - whole).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("size", [(65, 65), (30, 65), (20, 20)])
def test_sliding_changes_nothing_if_one_window_holds_the_photo(size: tuple[int, int]) -> None:
    net = tiny()
    image = photo(*size)
    assert (probabilities(net, image, overlap=0.5) == probabilities(net, image)).all()
    assert (label_map(net, image, overlap=0.5) == label_map(net, image)).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(200, 131), (66, 40), (40, 300), (65, 65), (30, 20)])
def test_a_photo_is_fitted_as_in_the_service(size: tuple[int, int]) -> None:
    """Larger photos are shrunk, and their labels enlarged, exactly as in service.images.

    Smaller ones are predicted as they are.
    """
    from PIL import Image

    from service.images.imaging import DecodedPhoto, fit, restore
    from service.inference.contract import InputSize

    net, image = tiny(), photo(*size)
    target = InputSize(policy="fixed", height=65, width=65, pad=(128, 128, 128))
    fitted = fit(DecodedPhoto(Image.fromarray(image), (size[1], size[0])), target)
    h, w = fitted.valid
    labels = label_map(net, fitted.pixels[:h, :w])
    expected = restore(labels, fitted, (size[1], size[0])).image
    assert (served_map(net, image) == expected).all()
    if max(size) <= 65:
        assert (
            served_map(net, image, (0.5, 1.0), flip=True)
            == label_map(net, image, (0.5, 1.0), flip=True)
        ).all()


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(ValueError, match=f"overlap={overlap}: give a share"):
        label_map(tiny(), photo(90, 90), overlap=overlap)


@pytest.mark.parametrize(
    ("image", "scales", "word"),
    [
        (np.zeros((4, 4), np.uint8), (1.0,), "(4, 4)"),
        (np.zeros((4, 4, 3), np.float32), (1.0,), "float32"),
        (np.zeros((4, 4, 4), np.uint8), (1.0,), "(4, 4, 4)"),
        (np.zeros((4, 4, 3), np.uint8), (), "scales=()"),
        (np.zeros((4, 4, 3), np.uint8), (1.0, -0.5), "-0.5"),
    ],
)
def test_wrong_images_and_scales_are_named(
    image: NDArray[np.uint8], scales: tuple[float, ...], word: str
) -> None:
    """The error names the given value."""
    with pytest.raises(ValueError, match="give") as error:
        label_map(tiny(), image, scales)
    assert word in str(error.value)


def test_network_in_training_mode_is_refused() -> None:
    """Batch norm would use the statistics of a single photo."""
    with pytest.raises(ValueError, match=r"net\.eval\(\)"):
        label_map(tiny().train(), photo(65, 65))


def test_saved_mask_keeps_every_class_id(tmp_path: Path) -> None:
    """Pillow renumbers the ids of a palette image with less than 256 colours."""
    labels = np.full((16, 16), 200, np.uint8)
    labels[0, :3] = 7, 20, 255
    for ids in (labels, np.arange(256, dtype=np.uint8).reshape(16, 16)):
        colored(ids, voc_palette(21)).save(tmp_path / "mask.png")
        with Image.open(tmp_path / "mask.png") as mask:
            assert mask.mode == "P"
            assert len(mask.getpalette() or []) == 3 * 256
            assert (np.asarray(mask) == ids).all()


@pytest.mark.slow
def test_photo_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    """Orientation 6 is a quarter turn; a broken EXIF block is ignored."""
    pixels = photo(24, 40)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "broken.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert (read_photo(tmp_path / "turned.png") == np.rot90(pixels, -1)).all()
    assert (read_photo(tmp_path / "broken.png") == pixels).all()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A small checkpoint."""
    net = tiny()
    card = Card(model=net.config, classes=tuple("abcde"), palette=voc_palette(5))
    return checkpoint.save(tmp_path / "net", net.state_dict(), card)


@pytest.mark.slow
def test_command_writes_the_mask_and_overlay_of_each_photo(saved: Path, tmp_path: Path) -> None:
    """Masks have the photo's size and are the library's label maps."""
    pixels = photo(50, 70)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    out = tmp_path / "out"
    arguments = [str(saved), str(tmp_path / "one.png"), "-o", str(out), "--overlay"]
    assert main([*arguments, "--scales", "0.5,1", "--flip", "--output-stride", "8"]) == 0
    net = checkpoint.load(saved, output_stride=8)
    with Image.open(out / "one.png") as mask:
        assert (np.asarray(mask) == served_map(net, pixels, (0.5, 1.0), flip=True)).all()
    with Image.open(out / "one_overlay.jpg") as overlay:
        assert overlay.size == (70, 50)


@pytest.mark.slow
def test_command_slides_over_large_photos(saved: Path, tmp_path: Path) -> None:
    pixels = photo(120, 70)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    options = ["-o", str(tmp_path / "out"), "--sliding", "--overlap", "1/4"]
    assert main([str(saved), str(tmp_path / "one.png"), *options]) == 0
    with Image.open(tmp_path / "out" / "one.png") as mask:
        found = np.asarray(mask)
    net = checkpoint.load(saved)
    assert (found == label_map(net, pixels, overlap=0.25)).all()
    assert (found != label_map(net, pixels)).any()


@pytest.mark.slow
def test_command_continues_after_a_file_that_is_not_a_picture(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code shows the failure; the other masks are written."""
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    Image.fromarray(photo(20, 20)).save(tmp_path / "good.png")
    images = [str(tmp_path / "bad.jpg"), str(tmp_path / "good.png")]
    assert main([str(saved), *images, "-o", str(tmp_path / "out")]) == 1
    assert (tmp_path / "out" / "good.png").exists()
    assert "bad.jpg" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_one_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(photo(20, 20)).save(tmp_path / "x.png")
    (tmp_path / "file").touch()
    assert main([str(saved), str(tmp_path / "x.png"), "-o", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a/x.png", "b/x.jpg"], "x.png"),
        (["x.png", "--output-stride", "5"], "choose from 8, 16, 32"),
        (["x.png", "--scales", "1,0"], "above 0"),
        (["x.png", "--scales", "1;2"], "list of scales"),
        (["x.png", "--overlap", "1"], "at least 0 and below 1"),
        ([], "give photos"),
        (["x.png", "--overlap", "0.5"], "give --sliding"),
        (["x.png", "--device", "gpu"], "'gpu': Expected one of cpu, cuda"),
        (["out/x.png"], "replaced by its mask"),
        (["x.png", "--submission", "voc", "--overlay"], "not part of a submission"),
        (["--submission", "voc", "--data", "d", "--overlay"], "not part of a submission"),
        (["street.png", "--submission", "cityscapes"], "CITY_SEQUENCE_FRAME"),
        (["--submission", "voc", "--data", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_usage_errors(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and a message naming what is wrong, before any work."""
    with pytest.raises(SystemExit) as error:
        main(["net", *arguments, "-o", "out"])
    assert error.value.code == 2
    assert word in capsys.readouterr().err
