"""What Prometheus reads of the running services, and the Grafana dashboard that names nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from running import Platform

DASHBOARD = Path(__file__).parents[2] / "hub" / "grafana" / "cellwork.json"
LINE = re.compile(r'(# TYPE \w+ (counter|gauge)|\w+\{(\w+="[^"\n]*",?)*\} [-+.\de]+)')


@pytest.fixture(scope="module")
def told(platform: Platform) -> dict[str, str]:
    with platform.browser() as browser:
        headers = {"authorization": f"Bearer {platform.user_token('inherit')}"}
        answers = {
            name: browser.get(f"/services/{name}/metrics", headers=headers)
            for name in ("cellwork", "jobs", "inference")
        }
    assert {answer.status_code for answer in answers.values()} == {200}
    return {name: answer.text for name, answer in answers.items()}


def test_each_line_of_the_metrics_is_one_that_prometheus_reads(told: dict[str, str]) -> None:
    wrong = [line for text in told.values() for line in text.splitlines() if not LINE.fullmatch(line)]
    assert wrong == []


def test_each_service_tells_its_requests_and_its_memory(told: dict[str, str]) -> None:
    for name, text in told.items():
        assert f'cellwork_requests_total{{service="{name}"' in text
        found = re.search(rf'cellwork_resident_bytes{{service="{name}",of="service"}} ([\d.e+]+)', text)
        assert found
        assert 20e6 < float(found[1]) < 4e9


def test_the_dashboard_asks_for_metrics_and_labels_that_exist(told: dict[str, str]) -> None:
    everything = "\n".join(told.values())
    expressions = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
    ]
    asked = {name for text in expressions for name in re.findall(r"cellwork_\w+", text)}
    assert asked == set(re.findall(r"^(cellwork_\w+)\{", everything, flags=re.M)), "each metric has its place"
    labels = {
        name for text in expressions for name in re.findall(r"by \(([^)]*)\)|([a-z]+)=", text) for name in name if name
    }
    assert {part.strip() for label in labels for part in label.split(",")} <= set(re.findall(r'(\w+)="', everything))
