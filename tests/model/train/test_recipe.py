"""Presets can be read, overrides apply, and errors name key, value and choices."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from model.data import shapes
from model.data.dataset import find
from model.paper import complexity
from model.train import preflight, recipe, run
from model.train.recipe import RecipeError
from model.train.run import FirstLine, duration

LIGHT = "efficientnet-lite0-voc"


SPLITS = {
    "voc": {"train", "trainaug", "trainval"},
    "cityscapes": {"train", "train_extra"},
    "coco": {"train"},
    "camvid": {"train"},
    "folder": {"train"},
}

CLASSES = {"cityscapes": 19, "camvid": 11, "folder": 2}


@pytest.mark.parametrize("name", recipe.presets())
def test_every_preset_is_valid_and_described(name: str) -> None:
    config = recipe.read(name, [])
    preflight.check(config)
    assert config.description
    assert config.split in SPLITS[config.dataset]
    assert config.model.num_classes == CLASSES.get(config.dataset, 21)


@pytest.mark.parametrize("name", recipe.presets())
def test_a_preset_that_starts_from_another_has_the_same_network(name: str) -> None:
    config = recipe.read(name, [])
    if config.init is None or not config.init.startswith("runs/"):
        return
    before = recipe.read(Path(config.init).parent.name, [])
    # Atrous convolution has no parameters of its own: the stride may differ.
    assert config.model == before.model.model_copy(
        update={"output_stride": config.model.output_stride}
    )


@pytest.mark.parametrize("name", recipe.presets())
def test_no_preset_begins_with_random_weights_unless_told_to(name: str) -> None:
    assert recipe.read(name, []).init
    assert recipe.read(name, ["init="]).init is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_larger_distilled_networks_are_as_small_and_cheap_as_their_presets_say(number: int) -> None:
    """Each is below 20 MB of float32 and below the bundled network's multiply-adds."""
    bundled = recipe.read("efficientnet-lite0-voc-taught", []).model
    larger = recipe.read(f"efficientnet-lite{number}-voc-taught", []).model
    parameters = sum(parameter.numel() for parameter in complexity.build(larger).parameters())
    assert 4 * parameters < 20e6
    costs = [complexity.measure(model, (513, 513)).multiply_adds for model in (larger, bundled)]
    assert costs[0] < costs[1]


def test_a_file_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + recipe.presets()[LIGHT].read_bytes())
    assert recipe.read(str(path), []) == recipe.read(LIGHT, [])


def test_one_crop_size_is_both_sides() -> None:
    assert recipe.read(LIGHT, ["model.crop_size=64"]).model.crop_size == (64, 64)
    assert recipe.read(LIGHT, ["model.crop_size=[65, 97]"]).model.crop_size == (65, 97)


def test_overrides_reach_nested_keys() -> None:
    config = recipe.read(LIGHT, ["model.output_stride=8", "dataset=camvid", "iterations = 7"])
    assert (config.model.output_stride, config.dataset, config.iterations) == (8, "camvid", 7)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.output_stride=5", r"model\.output_stride=5: .*choose from 8, 16, 32"),
        ("model.backbone=vgg", r"model\.backbone='vgg': .*xception_65"),
        ("learning_rate=-1", "learning_rate=-1: .*greater than 0"),
        ("learnig_rate=1", "^learnig_rate=1: no such key; did you mean learning_rate\\?$"),
        ("iteration=5", "^iteration=5: no such key; did you mean iterations\\?$"),
        ("model.aspp_chanels=5", r"no such key; did you mean model\.aspp_channels\?$"),
        ("crop=513", r"^crop=513: no such key; did you mean augment\.crop\?$"),
        ("augment.zzz=1", "no such key; the keys are crop, min_scale"),
        ("iterations", "write key=value"),
        # Values that are already on the pixels' scale are unchanged.
        ("model.mean=[0.485, 0.456, 0.406]", r"0 to 1.* much, mean=\(123\.675, 116\.28, 103"),
        ("model.std=[0.229, 0.224, 0.225]", r"0 to 1.* much, std=\(58\.395, 57\.12, 57\.375\)$"),
    ],
)
def test_a_wrong_override_names_key_value_and_what_is_valid(override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        recipe.read(LIGHT, [override])


def test_an_unknown_recipe_lists_the_presets() -> None:
    with pytest.raises(RecipeError, match=LIGHT):
        recipe.read("nothing", [])


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("iterations = ")
    with pytest.raises(RecipeError, match="not TOML"):
        recipe.read(str(path), [])


def test_the_length_of_a_run_is_compared_with_its_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the recipe lies, views per photo, and iterations that fit the data."""
    caplog.set_level("INFO")
    shapes.make(tmp_path)
    dataset = find("folder", tmp_path, "train")  # 24 photos
    config = recipe.read(LIGHT, ["iterations=2600", "batch_size=16"])
    preflight.log_start(config, dataset, recipe.path_of(LIGHT))
    assert f"{recipe.PRESETS / LIGHT}.toml: 24 photos of folder train, 2600 iter" in caplog.text
    assert "1.73e+03 views per photo" in caplog.text
    assert "about 50 times is a good start: --set iterations=100" in caplog.text
    assert preflight.fitting_iterations(1000, 10) == 5000


def test_durations_are_printed_in_readable_units() -> None:
    assert [duration(s) for s in (40, 600, 9000)] == ["40 s", "10 min", "2.5 h"]


def test_the_first_line_comes_with_an_estimate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with FirstLine(0, 1000, shown=True, since=time.monotonic()) as line:
        for iteration in range(1, 10):
            line.tell(iteration)
    told = [text for text in caplog.messages if "to go" in text]
    assert len(told) == 1
    assert told[0].startswith("iteration 6 of 1000: ")


def test_a_slow_first_iteration_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(run, "FIRST_LINE_S", 0.05)
    with FirstLine(40, 1000, shown=True, since=time.monotonic()) as line:
        line.timer.join(5)
    assert "iteration 41 runs; the first ones are the slowest" in caplog.text


def test_a_run_with_nothing_left_announces_no_iteration(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with FirstLine(6, 6, shown=True, since=time.monotonic() - 60) as line:
        assert not line.timer.is_alive()
    assert caplog.text == ""


def test_a_loop_that_starts_late_reports_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The seconds before it, of imports and reading masks, count too."""
    caplog.set_level("INFO")
    with FirstLine(0, 1000, shown=True, since=time.monotonic() - 60) as line:
        line.timer.join(5)
        assert "iteration 1 runs" in caplog.text
        line.tell(1)
        line.tell(2)
    assert "iteration 2 of 1000: " in caplog.text
