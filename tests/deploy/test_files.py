"""The other files of docs/deploy, compared with the real server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from feed.commands.serve import serve
from tests.conftest import RunningServer
from tickcast.settings import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"
needs_promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed"
)


async def scrape(server: RunningServer) -> str:
    async with httpx.AsyncClient() as http:
        return (await http.get(server.http + "/metrics")).text


def expressions(value: Any) -> list[str]:
    """All PromQL expressions in a dashboard or in a file of rules."""
    if isinstance(value, dict):
        own = [text for key, text in value.items() if key == "expr"]
        return own + [text for each in value.values() for text in expressions(each)]
    return [text for each in value for text in expressions(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("name", ["grafana.json", "alerts.yaml"])
async def test_every_metric_in_use_exists(name: str, server: RunningServer) -> None:
    found = expressions(yaml.safe_load((DEPLOY / name).read_text("utf-8")))
    used = set(re.findall(r"tickcast_\w+", " ".join(found)))
    served = await scrape(server)
    known = set(re.findall(r"^# TYPE (\w+) ", served, re.MULTILINE))
    known |= set(re.findall(r"^(\w+_bucket)\{", served, re.MULTILINE))
    assert len(used) > 5
    assert used - known == set()


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))["panels"]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23


@needs_promtool
def test_rules_are_valid() -> None:
    subprocess.run(["promtool", "check", "rules", str(DEPLOY / "alerts.yaml")], check=True)


@needs_promtool
async def test_metrics_follow_the_naming_rules_of_prometheus(server: RunningServer) -> None:
    checker = await asyncio.create_subprocess_exec(
        "promtool", "check", "metrics",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    findings, _ = await checker.communicate((await scrape(server)).encode())
    assert findings.decode() == ""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / "tickcast.service"
    text = (DEPLOY / "tickcast.service").read_text("utf-8")
    program = Path(sys.executable).with_name("tickcast")
    unit.write_text(text.replace("/opt/tickcast/bin/tickcast", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in done.stderr.splitlines() if "tickcast" in line]
    assert (done.returncode, about_ours) == (0, [])


def test_kubernetes_uses_options_settings_and_probes_that_exist() -> None:
    manifests = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
    pod = manifests[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = {option for each in serve.params for option in each.opts}
    assert {word for word in container["args"] if word.startswith("--")} <= options
    names = {each["name"].removeprefix("TICKCAST_").lower() for each in container["env"]}
    assert names <= set(Settings.__struct_fields__)
    paths = {
        container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert paths == {"/health", "/ready"}
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > waits + 5
    assert not pod["enableServiceLinks"]
    labels = manifests[0]["spec"]["template"]["metadata"]["labels"]
    assert all(each["spec"]["selector"] in (labels, {"matchLabels": labels}) for each in manifests)
