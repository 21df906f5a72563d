"""The training benchmark runs both sides and reports ratios; the figures are not checked here."""

from __future__ import annotations

import json

import pytest

from model import bench


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


def test_an_unknown_network_is_a_usage_error() -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--nets", "vgg"])
