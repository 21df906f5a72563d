"""Decoding hostile bytes, fitting, and masks that keep their ids."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from pixels.exif import ORIENTATION
from postprocess.results import encoders
from postprocess.results.png import Rows
from service.errors import ImageTooLarge, InvalidImage
from service.images import imaging
from service.images.imaging import EncodedPhoto
from service.images.prepare import Plan, prepare
from service.inference.contract import InputSize
from service.settings import PILLOW_MAX_PIXELS
from tests.service import onnx_models
from tests.service.images.profiles import wide_profile

TARGET = InputSize(policy="fixed", height=33, width=49, pad=(1, 2, 3))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def decoded(data: bytes, reduce_to: int | None = None) -> imaging.DecodedPhoto:
    return imaging.decode(imaging.open_checked(data, 10**7), reduce_to=reduce_to)


@pytest.mark.parametrize(
    ("size", "shape", "valid"),
    [
        ((65, 49), (49, 65), (49, 65)),
        ((130, 66), (33, 65), (33, 65)),
        ((130, 70), (49, 65), (35, 65)),
        ((20, 30), (49, 49), (30, 20)),
    ],
)
def test_a_photo_is_padded_only_as_far_as_an_aligned_model_needs(
    size: tuple[int, int], shape: tuple[int, int], valid: tuple[int, int]
) -> None:
    target = onnx_models.ALIGNED.model_copy(update={"pad": (1, 2, 3)})
    fitted = imaging.fit(decoded(encoded(picture(*size))), target)
    assert fitted.pixels.shape == (*shape, 3)
    assert fitted.valid == valid
    whole = imaging.fit(decoded(encoded(picture(*size))), target.whole)
    assert whole.pixels.shape == (49, 65, 3)
    assert (whole.pixels[: shape[0], : shape[1]] == fitted.pixels).all()
    assert (fitted.pixels[valid[0] :] == (1, 2, 3)).all()
    assert (fitted.pixels[:, valid[1] :] == (1, 2, 3)).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + bytes(64),  # a format that is not on the list
        b"\xff\xd8\xff\xe0",
        encoded(picture(40, 30))[:-200],
        encoded(picture(40, 30), "JPEG")[:-100],
    ],
)
def test_a_file_that_is_not_a_complete_image_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        decoded(data)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_png_with_a_damaged_byte_is_refused_instead_of_ending_in_black(share: float) -> None:
    """Reading the EXIF data of a PNG loads it; that load's error must not be lost."""
    data = bytearray(encoded(picture(300, 200)))
    data[int(share * len(data))] ^= 0xFF
    with pytest.raises(InvalidImage, match="truncated or broken"):
        decoded(bytes(data))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("PNG", {}, id="png"),
        pytest.param("TIFF", {"compression": "group4"}, id="tiff"),
    ],
)
@pytest.mark.slow
def test_too_many_pixels_are_refused_from_the_header_alone(
    kind: str, options: dict[str, str]
) -> None:
    """More than twice Pillow's own limit: the service's limit must decide, and say the size."""
    bomb = encoded(Image.new("1", (20_000, 20_000)), kind, **options)
    with pytest.raises(ImageTooLarge, match="20000 x 20000"):
        imaging.open_checked(bomb, 10**7)


def test_a_webp_above_pillows_own_limit_is_too_large_not_broken() -> None:
    """WebP's reader checks Pillow's limit itself; the header alone says 16383 x 16383."""
    size = struct.pack("<I", (16383 - 1) | (16383 - 1) << 14)
    frame = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + size
    webp = b"RIFF" + struct.pack("<I", len(frame) + 4) + b"WEBP" + frame + b"\0"
    with pytest.raises(ImageTooLarge, match="too large"):
        imaging.open_checked(webp, PILLOW_MAX_PIXELS)


def test_the_largest_setting_of_max_pixels_is_what_pillow_decodes() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert PILLOW_MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (5, 4))
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    photo = decoded(encoded(image, kind))
    assert (photo.image.mode, photo.image.size) == ("RGB", (5, 4))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert np.asarray(decoded(encoded(image)).image)[0, 0, 0] == 0x80


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_an_unknown_range_is_refused_not_clipped(dtype: type) -> None:
    image = Image.fromarray(np.full((4, 4), 1, dtype))
    with pytest.raises(InvalidImage, match="send 8 or 16 bits"):
        imaging.open_checked(encoded(image, "TIFF"), 10**6)


def test_transparent_pixels_are_white() -> None:
    photo = decoded(encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0))))
    assert np.asarray(photo.image)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    """The top left pixel as stored ends up where the tag says (EXIF 2.3, 4.6.4)."""
    stored = Image.new("RGB", (64, 48))
    stored.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    photo = decoded(encoded(stored, kind, exif=exif))
    assert photo.size == ((64, 48) if orientation < 5 else (48, 64))
    assert photo.image.size == photo.size
    assert photo.orientation == orientation
    found = np.argwhere(np.asarray(photo.image)[..., 0] > 128)
    top, left = (found.mean(axis=0) < 24).tolist()
    assert top == (orientation in (1, 2, 5, 6))
    assert left == (orientation in (1, 4, 5, 8))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_turns_nothing(value: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    photo = decoded(encoded(picture(6, 4), "PNG", exif=exif))
    assert (photo.size, photo.orientation) == ((6, 4), 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow warns, and reads the photo
def test_broken_exif_does_not_cost_the_photo() -> None:
    data = encoded(picture(6, 4), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert decoded(data).size == (6, 4)


def test_a_large_jpeg_is_decoded_small_but_keeps_its_size() -> None:
    photo = decoded(encoded(picture(800, 400), "JPEG"), reduce_to=100)
    assert photo.size == (800, 400)
    assert photo.image.size == (100, 50)


@pytest.mark.parametrize(("wanted", "side"), [(100, 100), (105, 100), (106, 200), (190, 200)])
def test_a_reduced_jpeg_may_be_a_twentieth_smaller_than_wanted(wanted: int, side: int) -> None:
    photo = decoded(encoded(picture(800, 400), "JPEG"), reduce_to=wanted)
    assert photo.image.width == side


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (2001, 2)])
def test_a_thin_jpeg_is_decoded_small_too(size: tuple[int, int]) -> None:
    photo = decoded(encoded(picture(*size), "JPEG"), reduce_to=100)
    assert photo.size == size


def test_a_small_photo_is_padded_not_scaled() -> None:
    image = picture(20, 10)
    fitted = imaging.fit(imaging.DecodedPhoto(image, image.size), TARGET)
    assert fitted.valid == (10, 20)
    assert (fitted.pixels[:10, :20] == np.asarray(image)).all()
    assert (fitted.pixels[10:] == TARGET.pad).all()
    assert (fitted.pixels[:, 20:] == TARGET.pad).all()


@pytest.mark.parametrize("size", [(490, 330), (98, 10), (10, 660), (1, 5000), (5000, 1)])
def test_a_large_photo_is_shrunk_to_fit_and_restored(size: tuple[int, int]) -> None:
    photo = imaging.DecodedPhoto(picture(*size), size)
    fitted = imaging.fit(photo, TARGET)
    assert fitted.pixels.shape == (33, 49, 3)
    assert fitted.valid[0] <= 33
    assert fitted.valid[1] <= 49
    restored = imaging.restore(np.zeros((33, 49), np.uint8), fitted, size)
    assert restored.image.shape == (size[1], size[0])


@pytest.mark.parametrize("size", [(490, 330), (98, 10), (10, 660), (1, 5000), (3001, 1999)])
def test_restoring_picks_the_pixels_that_pillow_picks(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (33, 49), np.uint8)
    for valid in ((33, 49), (1, 49), (33, 2), (7, 13)):
        fitted = imaging.Fitted(np.zeros((33, 49, 3), np.uint8), valid)
        part = Image.fromarray(labels[: valid[0], : valid[1]])
        expected = np.asarray(part.resize(size, Image.Resampling.NEAREST))
        assert (imaging.restore(labels, fitted, size).image == expected).all()


def test_every_id_survives_a_mask_png() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for colors in (2, 21, 256):
        palette = tuple((i, 0, 0) for i in range(colors))
        subsets = (labels, labels[3:4], labels[:, 7:9])  # few ids: Pillow must not renumber
        for subset in (*subsets, labels.repeat(3, axis=0)):
            mask = Image.open(io.BytesIO(encoders.mask_png(Rows.of(subset), palette)))
            assert mask.mode == "P"
            assert (np.asarray(mask) == subset).all()
            assert len(mask.getpalette() or []) == 768


def test_colours_follow_the_palette() -> None:
    labels = np.array([[0, 1]], np.uint8)
    image = Image.open(io.BytesIO(encoders.color_png(Rows.of(labels), ((0, 0, 0), (9, 8, 7)))))
    assert np.asarray(image).tolist() == [[[0, 0, 0], [9, 8, 7]]]


@pytest.mark.parametrize("times", [1, 3])
def test_colours_and_confidence_come_back_whether_rows_repeat_or_not(times: int) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8).repeat(times, axis=0)
    palette = tuple((i, 255 - i, i // 2) for i in range(256))
    image = Image.open(io.BytesIO(encoders.color_png(Rows.of(labels), palette)))
    assert (np.asarray(image) == np.array(palette, np.uint8)[labels]).all()
    image = Image.open(io.BytesIO(encoders.grey_png(Rows.of(labels))))
    assert (image.mode, np.asarray(image).tolist()) == ("L", labels.tolist())


@pytest.mark.parametrize(("shown", "expected"), [([], [100, 100, 100]), ([0], [50, 50, 50])])
def test_only_classes_that_are_shown_cover_the_photo(shown: list[int], expected: list[int]) -> None:
    photo = EncodedPhoto((1, 1), picture=Image.new("RGB", (1, 1), (100, 100, 100)))
    labels = Rows.of(np.zeros((1, 1), np.uint8))
    blended = encoders.overlay(photo, labels, ((0, 0, 0),), alpha=0.5, shown=shown)
    assert np.asarray(blended)[0, 0].tolist() == expected


@pytest.mark.parametrize("contour", [0, 1, 3, 32])
@pytest.mark.parametrize("height", [1, 63, 64, 65, 200])
def test_an_overlay_in_strips_is_the_overlay_of_the_whole(contour: int, height: int) -> None:
    """NumPy blends the whole photo at once: the same pixels, also where strips meet."""
    rng = np.random.default_rng(height)
    labels = rng.integers(0, 4, (40, 9), np.uint8).repeat(5, 0).repeat(7, 1)[:height]
    picture = rng.integers(0, 256, (*labels.shape, 3), np.uint8)
    palette = ((0, 0, 0), (250, 10, 90), (1, 2, 3), (9, 99, 199))
    photo = EncodedPhoto(labels.shape[::-1], picture=picture)
    made = encoders.overlay(
        photo, Rows.of(labels), palette, alpha=0.25, shown={1, 3}, contour=contour
    )
    weights = np.where(np.isin(labels, [1, 3]), 64, 0)
    if contour:
        weights[encoders.edges(labels, contour) & (weights > 0)] = 255
    colors, share = np.array(palette)[labels], weights[..., None] / 255
    expected = colors * share + picture * (1 - share)
    assert np.abs(np.asarray(made) - expected).max() <= 0.51
    assert (np.asarray(photo.picture) == picture).all()  # it is left as it was


def test_the_summary_counts_and_boxes_each_class() -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 2:5] = 1
    assert encoders.summary(labels, ("background", "cat")) == [
        {"id": 0, "name": "background", "pixels": 18, "fraction": 0.75, "box": [0, 0, 6, 4]},
        {"id": 1, "name": "cat", "pixels": 6, "fraction": 0.25, "box": [2, 1, 5, 3]},
    ]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own, in decode
@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_decode_to_the_mask(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, (5, 7), np.uint8)
    for label in (0, 1):
        runs = json.loads(json.dumps(encoders.rle(labels, label)))
        assert (coco.decode(runs) == (labels == label)).all()


def test_npz_needs_no_pickle() -> None:
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    with np.load(io.BytesIO(encoders.npz({"labels": labels})), allow_pickle=False) as archive:
        assert (archive["labels"] == labels).all()


def test_an_archive_holds_its_files_unchanged() -> None:
    with zipfile.ZipFile(io.BytesIO(encoders.archive({"a": b"1", "b": b"2"}))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"a": b"1", "b": b"2"}


def smooth(width: int, height: int) -> Image.Image:
    """Pixels that survive JPEG compression well."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("picture", [smooth(203, 101), picture(203, 101)])
@pytest.mark.parametrize("left", [0, 1])
def test_a_jpeg_that_lacks_only_its_last_marker_is_whole(
    picture: Image.Image, options: dict[str, object], left: int
) -> None:
    data = encoded(picture, "JPEG", **options)
    found = decoded(data[: len(data) - 2 + left])
    assert (np.asarray(found.image) == np.asarray(decoded(data).image)).all()
    assert (np.asarray(decoded(data[:-2], 50).image) == np.asarray(decoded(data, 50).image)).all()


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("picture", [smooth(203, 101), picture(203, 101)])
@pytest.mark.parametrize("missing", [4, 5, 6, 8, 12, 30, 100, 300])
def test_a_jpeg_that_lacks_more_is_refused(
    picture: Image.Image, options: dict[str, object], missing: int
) -> None:
    """Also when it is decoded at a reduced size."""
    data = encoded(picture, "JPEG", **options)[:-missing]
    for reduce_to in (None, 30):
        with pytest.raises(InvalidImage, match="truncated"):
            decoded(data, reduce_to)


def png_with(chunk: bytes, body: bytes, orientation: int = 1) -> bytes:
    """A PNG with one more chunk behind its header."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(picture(40, 30), exif=exif)
    return data[:33] + png_chunk(chunk, body) + data[33:]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


LONG = zlib.compress(bytes(range(256)) * 12_000)  # 3 MB


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"zTXt", b"Comment\0\0" + LONG),
        (b"iTXt", b"Comment\0\x01\0\0\0" + LONG),
        (b"iCCP", b"wide\0\0" + LONG),
        (b"iCCP", b"bomb\0\0" + zlib.compress(bytes(20_000_000))),
        (b"tEXt", b"Comment\0" + b"x" * 3_000_000),
    ],
)
def test_a_png_is_not_refused_for_invisible_chunks(kind: bytes, body: bytes) -> None:
    photo = decoded(png_with(kind, body, orientation=6))
    assert photo.size == (30, 40)
    turned = np.rot90(np.asarray(picture(40, 30)), -1)
    assert (np.asarray(photo.image) == turned).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "each", "times"),
    [
        (b"tEXt", b"Comment\0" + b"x" * 10_000_000, 9),
        (b"iTXt", b"Comment\0\0\0\0\0" + b"x" * 10_000_000, 9),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000), 9), 100),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 7_000_000, 11),
        (b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + LONG, 1),
    ],
)
def test_a_png_with_ninety_megabytes_of_text_is_read(kind: bytes, each: bytes, times: int) -> None:
    """Pillow refuses more than 64 MB, counted over all texts of a file."""
    data = png_with(b"teSt", b"", orientation=6)
    data = data[:33] + png_chunk(kind, each) * times + data[33:]
    photo = decoded(data)
    assert photo.size == (30, 40)
    assert (np.asarray(photo.image) == np.rot90(np.asarray(picture(40, 30)), -1)).all()


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
NOISE = np.random.default_rng(0).bytes(3000).hex().encode()  # about as long when compressed
EXIF = (
    b"\nexif\n 32\n"
    + (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0").hex().encode()
)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF + NOISE)),
        (b"tEXt", b"Raw profile type exif\0" + EXIF + NOISE),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP + NOISE),
        (b"iTXt", b"XML:com.adobe.xmp\0\x01\0\0\0" + zlib.compress(XMP + NOISE)),
    ],
)
def test_a_long_text_with_the_orientation_is_kept(kind: bytes, body: bytes) -> None:
    """ImageMagick writes EXIF data as text, image editors write XMP."""
    plain = encoded(picture(40, 30))
    other = png_chunk(b"zTXt", b"Comment\0\0" + LONG)  # to be removed
    photo = decoded(plain[:33] + other + png_chunk(kind, body) + plain[33:])
    assert (photo.orientation, photo.size) == (6, (30, 40))


def test_a_large_profile_of_a_png_is_applied() -> None:
    """Profiles of some scanners are larger than the megabyte that Pillow accepts."""
    profile = wide_profile()
    padded = profile + np.random.default_rng(0).bytes(1_500_000)
    data = png_with(b"iCCP", b"wide\0\0" + zlib.compress(padded))
    expected = decoded(encoded(picture(40, 30), icc_profile=profile)).image
    assert (np.asarray(decoded(data).image) == np.asarray(expected)).all()
    assert (np.asarray(expected) != np.asarray(picture(40, 30))).any()


def test_a_png_of_chunks_without_end_is_refused_at_once() -> None:
    data = encoded(picture(4, 3))
    with pytest.raises(InvalidImage, match="chunks"):
        decoded(data[:33] + png_chunk(b"teSt", b"") * 70_000 + data[33:])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_what_the_model_sees_does_not_depend_on_what_else_is_asked_for(mode: str) -> None:
    """For a mask a JPEG is decoded at a fraction of its size, for an overlay later as a whole."""
    data = encoded(picture(1600, 1200).convert(mode), "JPEG")
    target = InputSize(policy="fixed", height=100, width=100, pad=(0, 0, 0))
    alone, both = (
        prepare(imaging.open_checked(data, 10**7), Plan(target, None, whole))
        for whole in (False, True)
    )
    assert (alone.pixels[0] == both.pixels[0]).all()
    assert both.photo.picture is None
    assert (np.asarray(both.photo.whole) == np.asarray(decoded(data).image)).all()


def test_large_bmp_of_run_lengths_is_refused_before_decoding() -> None:
    """Pillow decodes run lengths in Python: 2,000,000 bytes are allowed, one more is not."""
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "BMP")
    plain = out.getvalue()
    runs = plain[:30] + (1).to_bytes(4, "little") + plain[34:]  # BI_RLE8
    allowed = runs + bytes(2_000_000 - len(runs))
    assert imaging.open_checked(allowed, 100).size == (4, 4)
    with pytest.raises(InvalidImage, match="BMP of run lengths"):
        imaging.open_checked(allowed + b"\0", 100)
    assert imaging.open_checked(plain + bytes(2_000_000), 100).size == (4, 4)


@pytest.mark.parametrize(("kind", "times"), [("JPEG", 1), ("PNG", 1), ("WEBP", 2)])
def test_memory_is_reserved_by_the_needs_of_a_format(kind: str, times: int) -> None:
    """The decoder of WebP keeps two canvases besides the picture."""
    opened = imaging.open_checked(encoded(picture(20, 10), kind), 10**6)
    assert opened.memory == times * 200
