"""Your own data: a folder described by `dataset.toml`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.check import check
from model.data.dataset import DatasetError, find, read_mask


def own(root: Path, toml: str = 'classes = ["ground", "tree"]\nvoid = 9\n') -> Path:
    root.mkdir(exist_ok=True)
    (root / "dataset.toml").write_text(toml)
    for kind in ("images", "masks"):
        (root / kind / "train").mkdir(parents=True)
    for name, suffix in (("a", "jpg"), ("b.1", "PNG")):
        Image.new("RGB", (4, 3)).save(root / "images" / "train" / f"{name}.{suffix}")
        mask = np.array([[0, 1, 9, 7]] * 3, np.uint8)
        Image.fromarray(mask).save(root / "masks" / "train" / f"{name}.png")
    return root


def test_folder_pairs_every_image_with_its_mask(tmp_path: Path) -> None:
    dataset = find("folder", own(tmp_path), "train")
    assert [pair.name for pair in dataset.pairs] == ["a", "b.1"]
    assert all(pair.image.is_file() and pair.mask.is_file() for pair in dataset.pairs)
    assert dataset.palette == ((0, 0, 0), (128, 0, 0))
    ids = read_mask(dataset.pairs[1].mask, classes=2, void=dataset.void)
    assert ids[0].tolist() == [0, 1, 255, 255]


@pytest.mark.parametrize(
    ("toml", "ids"),
    [('void = "rest"', [0, 1, 255, 255]), ('values = [1, 7]\nvoid = "rest"', [255, 0, 255, 1])],
)
def test_all_other_values_can_be_declared_void(tmp_path: Path, toml: str, ids: list[int]) -> None:
    dataset = find("folder", own(tmp_path, f'classes = ["ground", "tree"]\n{toml}\n'), "train")
    mask = dataset.pairs[0].mask
    assert read_mask(mask, classes=2, void=dataset.void)[0].tolist() == ids
    assert not check(dataset).stray


@pytest.mark.parametrize(
    "line",
    ['images = "../x"', 'masks = "/etc"', 'lists = "a/../../b.txt"', 'mask_suffix = "/../a.png"'],
)
def test_a_description_may_not_leave_its_folder(tmp_path: Path, line: str) -> None:
    toml = f'classes = ["a", "b"]\n{line}\n'
    with pytest.raises(DatasetError, match="leaves the data set's folder"):
        find("folder", own(tmp_path, toml), "train")


def test_names_and_splits_may_not_leave_the_folder_but_a_link_may(tmp_path: Path) -> None:
    """With --convert, names become paths of outputs too. A link is the owner's choice."""
    root = own(tmp_path / "set", 'classes = ["a", "b"]\nlists = "{split}.txt"\n')
    (root / "train.txt").write_text("../../secret\n")
    with pytest.raises(DatasetError, match=r"train\.txt='\.\./\.\./secret' leaves"):
        find("folder", root, "train")
    with pytest.raises(DatasetError, match=r"split='\.\./train' leaves"):
        find("folder", root, "../train")
    (root / "train.txt").write_text("a\n")
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").symlink_to(tmp_path / "elsewhere")
    assert len(find("folder", root, "train").pairs) == 1


def test_photos_and_masks_may_lie_in_one_folder(tmp_path: Path) -> None:
    """In such a folder, a file whose name ends with mask_suffix is a mask."""
    toml = 'classes = ["a", "b"]\nimages = "all"\nmasks = "all"\n'
    folder = tmp_path / "all"
    folder.mkdir()
    for name in ("1.jpg", "1.png", "2.jpg", "2.png"):
        Image.new("L", (4, 3)).save(folder / name)
    (tmp_path / "dataset.toml").write_text(toml)
    pairs = find("folder", tmp_path, "train").pairs
    assert [(p.image.name, Path(str(p.mask)).name) for p in pairs] == [
        ("1.jpg", "1.png"),
        ("2.jpg", "2.png"),
    ]
    for path in folder.glob("*.jpg"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"set mask_suffix in .* only the masks"):
        find("folder", tmp_path, "train")
    Image.new("L", (4, 3)).save(folder / "1_mask.png")
    (folder / "2.png").unlink()
    (tmp_path / "dataset.toml").write_text(toml + 'mask_suffix = "_mask.png"\n')
    assert [pair.image.name for pair in find("folder", tmp_path, "train").pairs] == ["1.png"]


def test_list_chooses_the_pairs_and_their_order(tmp_path: Path) -> None:
    own(tmp_path, 'classes = ["ground", "tree"]\nlists = "{split}.txt"\n')
    (tmp_path / "train.txt").write_text("b.1\n")
    assert [pair.name for pair in find("folder", tmp_path, "train").pairs] == ["b.1"]


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("classes = []", "classes"),
        ('classes = ["a"]', r'\["background", "a"\]'),
        ('classes = ["a", "b"]\nclases = 1', r"clases=1: no such key; did you mean classes\?$"),
        ('classes = ["a", "b"]\npalette = [[0, 0, 0]]', "1 colours for 2 classes"),
        ("classes = [", "dataset.toml"),
        ('classes = ["a", "b", "b"]', "a name of its own"),
        ('classes = ["a", "b"]\nimages = "photos"', "photos does not exist"),
        ('classes = ["a", "b"]\npalette = [[0, 0, 300]]', r"palette\.0\.2=300: .*255"),
        ('classes = ["a", "b"]\npalette = ["#f00"]', r"palette\.0='#f00': .*list in brackets"),
        ("void = 7", r"toml: classes: Field required"),
    ],
)
def test_bad_description_is_refused_by_name(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        find("folder", own(tmp_path, toml), "train")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("values = [0]", "values has 1 values for 2 classes"),
        ("values = [1, 1]", "different numbers"),
        ("values = [0, 300]", "different numbers"),
        ("values = [0, 9]\nvoid = 9", "void=9 is also the value of a class"),
        ('mask_suffix = "_mask.jpg"', "lossless"),
    ],
)
def test_contradictory_values_are_refused(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        find("folder", own(tmp_path, f'classes = ["a", "b"]\n{line}\n'), "train")


def test_values_name_the_classes_in_the_masks(tmp_path: Path) -> None:
    own(tmp_path, 'classes = ["tree", "ground"]\nvalues = [7, 0]\nvoid = 9\n')
    dataset = find("folder", tmp_path, "train")
    ids = read_mask(dataset.pairs[0].mask, classes=2, void=dataset.void)
    assert ids[0].tolist() == [1, 255, 255, 0]  # of 0, 1, 9, 7


def test_masks_may_be_named_by_a_suffix(tmp_path: Path) -> None:
    own(tmp_path, 'classes = ["a", "b"]\nmask_suffix = "_mask.png"\n')
    dataset = find("folder", tmp_path, "train")
    assert dataset.pairs[0].mask == tmp_path / "masks" / "train" / "a_mask.png"


def test_one_bit_masks_hold_the_ids_zero_and_one(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[False, True]])).save(path)
    assert read_mask(path, classes=2).tolist() == [[0, 1]]


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"images/val does not exist \(beside it: train\)"):
        find("folder", own(tmp_path), "val")


def test_photos_without_a_folder_for_their_split_are_noticed(tmp_path: Path) -> None:
    own(tmp_path)
    for path in (tmp_path / "images" / "train").iterdir():
        path.rename(tmp_path / "images" / path.name)
    (tmp_path / "images" / "train").rmdir()
    with pytest.raises(DatasetError, match=r"pictures lie in .*images itself: .* folder train"):
        find("folder", tmp_path, "train")


def test_a_list_may_have_names_with_spaces_and_a_byte_order_mark(tmp_path: Path) -> None:
    own(tmp_path, 'classes = ["ground", "tree"]\nlists = "{split}.txt"\n')
    for path in (tmp_path / "images/train/a.jpg", tmp_path / "masks/train/a.png"):
        path.rename(path.with_name(f"my photo{path.suffix}"))
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfmy photo\r\n\r\nb.1\r\n")
    pairs = find("folder", tmp_path, "train").pairs
    assert [pair.name for pair in pairs] == ["my photo", "b.1"]
    assert all(pair.image.is_file() and pair.mask.is_file() for pair in pairs)


def test_a_description_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    own(tmp_path)
    toml = tmp_path / "dataset.toml"
    toml.write_bytes(b"\xef\xbb\xbf" + toml.read_bytes())
    assert find("folder", tmp_path, "train").classes == ("ground", "tree")


def test_the_extra_files_that_macos_writes_are_not_images(tmp_path: Path) -> None:
    (own(tmp_path) / "images" / "train" / "._a.jpg").write_bytes(b"Mac OS X")
    assert [pair.name for pair in find("folder", tmp_path, "train").pairs] == ["a", "b.1"]


def test_the_error_about_a_folder_of_folders_says_that_it_has_no_image(tmp_path: Path) -> None:
    images = own(tmp_path) / "images" / "train"
    (images / "inside").mkdir()
    for path in images.glob("*.*"):
        path.rename(images / "inside" / path.name)
    with pytest.raises(DatasetError, match=r"train holds no image .*not searched"):
        find("folder", tmp_path, "train")


def test_two_images_with_the_same_name_are_refused(tmp_path: Path) -> None:
    own(tmp_path)
    Image.new("RGB", (4, 3)).save(tmp_path / "images" / "train" / "a.png")
    with pytest.raises(DatasetError, match="share a name"):
        find("folder", tmp_path, "train")
