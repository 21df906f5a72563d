"""The evaluation command: its figures equal scikit-learn's, and one pass computes all of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import checkpoint
from model.checkpoint import Card
from model.data import survey
from model.data.dataset import VOC_CLASSES, DatasetError, find, read_mask, voc_palette
from model.data.photo import PhotoFile, read_photo
from model.evaluate import __main__ as evaluate
from model.evaluate import evaluation, predict
from model.evaluate.metrics import Confusion
from model.network.inference import label_map, served_map
from tests.model import voc_folder
from tests.model.nets import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_folder.make(tmp_path_factory.mktemp("data"), count=3, split="val")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = tiny(21)
    card = Card(model=net.config, classes=VOC_CLASSES, palette=voc_palette(21))
    return checkpoint.save(tmp_path_factory.mktemp("net") / "net", net.state_dict(), card)


def run(saved: Path, data: Path, *options: str) -> dict[str, object]:
    target = data / "result.json"
    assert evaluate.main([str(saved), "--data", str(data), "--json", str(target), *options]) == 0
    return dict(json.loads(target.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_figures_are_scikit_learns(saved: Path, data: Path) -> None:
    """The mean and each class, over all pixels of all pictures that are not void."""
    from sklearn.metrics import confusion_matrix, jaccard_score

    options = ("--output-stride", "8", "--scales", "0.5,1", "--flip")
    result = run(saved, data, *options)
    net = checkpoint.load(saved, output_stride=8)
    truths, predictions = [], []
    for pair in find("voc", data, "val").pairs:
        with Image.open(str(pair.mask)) as mask:
            truth = np.asarray(mask)
        labels = label_map(net, read_photo(pair.image), (0.5, 1.0), flip=True)
        truths.append(truth[truth != 255])
        predictions.append(labels[truth != 255])
    true, predicted = np.concatenate(truths), np.concatenate(predictions)
    matrix = confusion_matrix(true, predicted, labels=range(21))
    assert result["pixels"] == matrix.sum()
    assert result["miou"] == pytest.approx(
        jaccard_score(true, predicted, average="macro"), abs=1e-6
    )
    seen = np.union1d(true, predicted)
    expected = jaccard_score(true, predicted, labels=seen, average=None)
    iou = result["iou"]
    assert isinstance(iou, dict)
    assert [iou[VOC_CLASSES[label]] for label in seen] == pytest.approx(expected, abs=1e-6)
    assert [value for value in iou.values() if value is None] == [None] * (21 - len(seen))


@pytest.mark.slow
def test_a_part_of_the_split_is_evenly_spread_and_named(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three of seven photos; the others are not read."""
    data = voc_folder.make(tmp_path, count=7, split="val")
    some = run(saved, data, "--photos", "3")
    assert (some["images"], some["images_in_split"]) == (3, 7)
    assert "on 3 of 7 images, evenly spread, of voc val" in capsys.readouterr().out
    names = [pair.name for pair in find("voc", data, "val").thinned(3).pairs]
    lists = data / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    assert names == [f"2007_{index:06}" for index in (0, 2, 4)]
    (lists / "val.txt").write_text("\n".join(names))
    alone = run(saved, data)
    assert alone.items() <= some.items()
    assert "images_in_split" not in alone
    assert run(saved, data, "--photos", "9") == alone


@pytest.mark.slow
def test_trimap_and_boundary_come_from_the_same_pass(
    saved: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = data / "curve.png"
    asked = run(saved, data, "--trimap", "1,3,99", "--boundary", "--plot", str(plot))
    plain = run(saved, data)
    assert {key: asked[key] for key in plain} == plain
    trimap = asked["trimap"]
    assert isinstance(trimap, dict)
    assert list(trimap) == ["1", "3", "99"]
    assert trimap["99"] == asked["miou"]  # that band is the whole picture
    assert trimap["1"] != trimap["3"]
    assert isinstance(asked["boundary_miou"], float)
    with Image.open(plot) as picture:
        assert min(picture.size) > 300
    table = capsys.readouterr().out
    assert f"3 px   {trimap['3']:.4f}" in table
    assert f"boundary mIoU {asked['boundary_miou']:.4f}" in table


@pytest.mark.slow
def test_sliding_evaluates_large_photos_window_by_window(saved: Path, tmp_path: Path) -> None:
    data = voc_folder.make(tmp_path, count=2, split="val", size=(100, 40))
    result = run(saved, data, "--sliding", "--overlap", "0.5")
    net = checkpoint.load(saved)
    confusion = Confusion(21)
    for pair in find("voc", data, "val").pairs:
        labels = label_map(net, read_photo(pair.image), overlap=0.5)
        confusion.add(read_mask(pair.mask, classes=21), labels)
    assert result["miou"] == pytest.approx(confusion.miou(), abs=1e-6)
    assert result["sliding_overlap"] == 0.5
    assert run(saved, data)["miou"] != result["miou"]


@pytest.mark.slow
def test_large_photos_are_evaluated_as_served_by_default(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = voc_folder.make(tmp_path, count=2, split="val", size=(150, 120))
    net = checkpoint.load(saved)
    expected = {}
    for judge in (served_map, label_map):
        confusion = Confusion(21)
        for pair in find("voc", data, "val").pairs:
            photo = PhotoFile(pair.image)
            labels = served_map(net, photo) if judge is served_map else label_map(net, photo.pixels)
            confusion.add(read_mask(pair.mask, classes=21), labels)
        expected[judge] = pytest.approx(confusion.miou(), abs=1e-6)
    result = run(saved, data)
    assert result["miou"] == expected[served_map]
    assert result["larger_photos"] == {"count": 2, "judged": "shrunk", "crop_size": [65, 65]}
    assert "2 photos larger than 65 x 65 (H x W) were shrunk to it" in capsys.readouterr().out
    result = run(saved, data, "--whole")
    assert result["miou"] == expected[label_map]
    assert "evaluated whole; the service shrinks them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plot", "x.png"], "give --trimap"),
        (["--trimap", "1,5", "--plot", "x.doc"], "must end in one of .png"),
        (["--trimap", "0,5"], "widths above 0"),
        (["--trimap", ""], "widths above 0"),
        (["--overlap", "0.5"], "give --sliding"),
        (["--device", "gpu"], "'gpu': Expected one of cpu, cuda"),
    ],
)
def test_wrong_options_are_usage_errors(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mistake is found before anything is loaded."""
    with pytest.raises(SystemExit) as error:
        evaluate.main(["net", "--data", "data", *options])
    assert error.value.code == 2
    assert says in capsys.readouterr().err


def test_figures_are_printed_even_where_they_cannot_be_written(
    saved: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evaluation may have taken hours, so its figures are kept."""
    (tmp_path / "file").touch()
    command = [str(saved), "--data", str(data), "--json", str(tmp_path / "file" / "out.json")]
    assert evaluate.main(command) == 1
    printed = capsys.readouterr()
    assert "mIoU 0." in printed.out
    assert "file" in printed.err


def test_a_set_without_void_has_no_trimap(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = voc_folder.make(tmp_path, count=1, split="val")
    (pair,) = find("voc", data, "val").pairs
    mask = read_mask(pair.mask, classes=21)
    Image.fromarray(np.where(mask == 255, 0, mask)).save(str(pair.mask))
    assert evaluate.main([str(saved), "--data", str(data), "--trimap", "1"]) == 1
    assert "no mask has void" in capsys.readouterr().err


def test_a_mask_of_another_size_than_its_photo_is_named(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = voc_folder.make(tmp_path, count=2, split="val")
    Image.new("L", (9, 7)).save(str(find("voc", data, "val").pairs[1].mask))
    assert evaluate.main([str(saved), "--data", str(data)]) == 1
    assert "2007_000001.png is 9 x 7: make them equal" in capsys.readouterr().err


def test_the_same_classes_in_another_order_are_refused(data: Path) -> None:
    """This happens after an edit of dataset.toml. The mIoU would mean nothing."""
    dataset = find("voc", data, "val")
    evaluation.check_classes(VOC_CLASSES, dataset)
    evaluation.check_classes((*VOC_CLASSES[:-1], "tv/monitor"), dataset)  # another spelling
    swapped = (*VOC_CLASSES[:-2], *VOC_CLASSES[:-3:-1])
    with pytest.raises(DatasetError, match="class 19 is 'tvmonitor' in the model and 'train'"):
        evaluation.check_classes(swapped, dataset)
    with pytest.raises(DatasetError, match="has 20 classes, dataset 'voc' has 21"):
        evaluation.check_classes(VOC_CLASSES[1:], dataset)


def test_a_set_of_only_void_has_no_figures(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = voc_folder.make(tmp_path, count=1, split="val")
    Image.new("L", (48, 40), 255).save(str(find("voc", data, "val").pairs[0].mask))
    target = tmp_path / "result.json"
    assert evaluate.main([str(saved), "--data", str(data), "--json", str(target)]) == 1
    assert "voc val: no pixel has a class: all masks are void" in capsys.readouterr().err
    assert not target.exists()


def test_masks_of_a_single_class_have_no_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With masks of 0 and 255 and no `values`, only background is evaluated, with mIoU 1."""
    for kind in ("images", "masks"):
        (tmp_path / kind / "val").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "images/val/a.jpg")
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "masks/val/a.png")
    (tmp_path / "dataset.toml").write_text('classes = ["background", "thing"]\n')
    net = tiny(2)
    card = Card(model=net.config, classes=("background", "thing"), palette=voc_palette(2))
    path = checkpoint.save(tmp_path / "net", net.state_dict(), card)
    command = [str(path), "--data", str(tmp_path)]  # dataset.toml says that it is a folder
    assert evaluate.main(command) == 1
    error = capsys.readouterr().err
    assert "every labelled pixel is background: nothing to tell apart" in error
    assert "give `values = [0, 255]`" in error
    mask[10:20, 10:20] = 1
    mask[30:, 30:] = 7
    Image.fromarray(mask).save(tmp_path / "masks/val/a.png")
    assert evaluate.main(command) == 1
    error = capsys.readouterr().err
    assert "folder val: masks hold ids that are no class: [7] (7 in 100 pixels)" in error
    assert 'give `void = "rest"` if all others mean void' in error
    said = 'classes = ["background", "thing"]\nvoid = "rest"\n'
    (tmp_path / "dataset.toml").write_text(said)
    assert evaluate.main(command) == 0


@pytest.mark.parametrize("first", [1, 5])
def test_ids_that_are_off_by_one_are_refused_with_the_line_that_fixes_them(
    saved: Path, tmp_path: Path, first: int
) -> None:
    """With 21 classes at 1 to 21 and void at 255, every class would be taken for the next one."""
    for kind in ("images", "masks"):
        (tmp_path / kind / "val").mkdir(parents=True)
    ids = np.arange(400).reshape(20, 20) % 21 + first
    ids[0, 0] = 255
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "masks/val/a.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "images/val/a.jpg")
    (tmp_path / "dataset.toml").write_text(f"classes = {list(VOC_CLASSES)}\n")
    dataset = find("folder", tmp_path, "val")
    values = list(range(first, first + 21))
    with pytest.raises(DatasetError) as refused:
        survey.expect_classes(survey.survey(dataset))
    assert f"as many values as classes: then give `values = {values}`" in str(refused.value)


def test_masks_that_cannot_be_read_are_named_before_anything_runs(tmp_path: Path) -> None:
    """Otherwise an evaluation would end when it reaches the pair, perhaps after hours."""
    for kind in ("images", "masks"):
        (tmp_path / kind / "val").mkdir(parents=True)
    ids = Image.fromarray((np.arange(400).reshape(20, 20) % 2).astype(np.uint8))
    for name in ("a", "b", "c"):
        ids.save(tmp_path / f"masks/val/{name}.png", "PNG" if name == "a" else "JPEG")
        Image.new("RGB", (20, 20)).save(tmp_path / f"images/val/{name}.jpg")
    (tmp_path / "dataset.toml").write_text('classes = ["background", "thing"]\n')
    report = survey.survey(find("folder", tmp_path, "val"))
    with pytest.raises(DatasetError, match=r"folder val: b: the mask is a JPEG .*, and 1 more"):
        survey.expect_classes(report)
    survey.expect_classes(report, skips_damage=True)  # a training skips up to max_skips of them


@pytest.mark.slow
def test_an_evaluation_that_runs_out_of_memory_says_how_to_use_less(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc_folder.make(tmp_path, count=1, split="val")
    (pair,) = find("voc", tmp_path, "val").pairs
    side = 2000  # at 99 times this size the photo alone takes 470 GB
    Image.new("RGB", (side, side)).save(pair.image)
    ids = np.arange(side * side, dtype=np.uint32).reshape(side, side) % 2
    Image.fromarray(ids.astype(np.uint8)).save(str(pair.mask))
    options = ["--data", str(tmp_path), "--whole", "--scales", "99"]
    assert evaluate.main([str(saved), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory: take fewer or smaller --scales")
    photos = [str(pair.image), "-o", str(tmp_path / "masks")]
    assert predict.main([str(saved), *photos, *options[2:]]) == 1
    assert "error: out of memory: take fewer or smaller --scales" in capsys.readouterr().err


def test_both_evaluators_have_the_same_options() -> None:
    """model.evaluate and export.evaluate share names, help texts and defaults."""
    from export import evaluate as exported

    def described(parser: object) -> dict[str, object]:
        actions = parser._actions  # type: ignore[attr-defined]
        return {
            a.option_strings[0]: (a.help, a.default, a.metavar)
            for a in actions[1:-1]
            if a.option_strings
        }

    ours, theirs = described(evaluate.parser()), described(exported.parser())
    shared = ("--dataset", "--data", "--split", "--trimap", "--plot", "--boundary", "--json")
    for name in shared:
        assert ours[name] == theirs[name], name


@pytest.mark.slow
def test_cleaned_masks_are_what_is_evaluated(
    saved: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No pixel has confidence 1, so all become background and no other class is found."""
    recall = run(saved, data, "--min-confidence", "1")["recall"]
    assert isinstance(recall, dict)
    found = {name: value for name, value in recall.items() if value is not None}
    assert len(found) > 1
    assert found == {name: float(name == "background") for name in found}
    assert evaluate.main([str(saved), "--data", str(data), "--min-confidence", "7"]) == 1
    assert "min_confidence" in capsys.readouterr().err
