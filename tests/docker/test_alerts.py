"""promtool checks that each alert fires on its fault, and none in normal operation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
RULES = HERE.parents[1] / "docker" / "prometheus"
CASES = HERE / "alerts_test.yaml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian package prometheus)",
)


def promtool(*arguments: str) -> str:
    command = ["promtool", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_each_alert_fires_on_its_fault_and_none_in_normal_operation() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(CASES))


@needs_promtool
def test_prometheus_reads_its_configuration() -> None:
    promtool("check", "config", str(RULES / "prometheus.yaml"))


def test_every_alert_is_tested_on_a_fault_and_in_normal_operation() -> None:
    (group,) = yaml.safe_load((RULES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    alerts = {rule["alert"] for rule in group["rules"]}
    fired: set[str] = set()
    silent: set[str] = set()
    for case in yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]:
        for tried in case["alert_rule_test"]:
            (fired if tried.get("exp_alerts") else silent).add(tried["alertname"])
    assert fired == silent == alerts
