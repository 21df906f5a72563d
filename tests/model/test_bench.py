"""The training benchmark runs both sides and reports ratios; the figures are not checked here."""

from __future__ import annotations

import json

import pytest

from model.bench import __main__ as bench
from model.bench import variants
from model.train import assembly


@pytest.mark.slow
# Warnings of the other library's dependencies.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_both_networks_train_and_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--nets", "light", "--crop", "64", "--batch", "2", "--iterations", "1", "--json"]
    assert bench.main([*arguments, "--workers", "0"]) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = result["nets"]
    assert row["ratio"] == pytest.approx(
        row["ours_crops_per_second"] / row["theirs_crops_per_second"], rel=0.1
    )
    assert row["ours_parameters"] == pytest.approx(row["theirs_parameters"], rel=0.25)
    assert 0 <= result["waiting"] < 1
    assert set(result["phases_ms"]) == {"forward", "loss", "backward", "update"}
    assert all(ms > 0 for ms in result["phases_ms"].values())
    assert result["loader_ms"] > 0


@pytest.mark.slow
def test_torchvisions_network_has_the_size_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """Both loops train the same network: to the parameter."""
    arguments = ["--crop", "48", "--batch", "2", "--iterations", "1", "--json", "--workers", "0"]
    assert bench.main(["--nets", "light-loop,resnet50-os8", *arguments]) == 0
    for row in json.loads(capsys.readouterr().out)["nets"]:
        assert row["ours_parameters"] == row["theirs_parameters"]
        assert row["ratio"] > 0


@pytest.mark.slow
def test_the_options_for_speed_train_to_the_same_result_within_their_bounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assembly, "COMPILER", "aot_eager")  # generating C++ takes minutes
    arguments = ["--variants", "--crop", "64", "--batch", "2", "--iterations", "2", "--json"]
    assert bench.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["variants"]
    assert [row["variant"] for row in rows] == list(variants.VARIANTS)
    assert rows[0]["loss_difference"] == rows[0]["weight_difference"] == 0
    # bfloat16 must change the loss by more than float32's rounding: else nothing is compared.
    assert all(row["loss_difference"] > 1e-4 for row in rows if "bf16" in row["variant"])
    assert all(row["weight_difference"] > 0 for row in rows[1:])  # other arithmetic was used


@pytest.mark.slow
def test_a_variant_that_trains_to_another_result_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variant with another learning rate stands for an option that breaks the training."""
    other = variants.PLAIN | {"learning_rate": 0.03}
    monkeypatch.setattr(variants, "VARIANTS", {"plain": variants.PLAIN, "other": other})
    assert bench.main(["--variants", "--crop", "48", "--batch", "2", "--iterations", "1"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].endswith("yes")
    assert shown[2].endswith("NO")


def test_an_unknown_network_is_a_usage_error() -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--nets", "vgg"])
