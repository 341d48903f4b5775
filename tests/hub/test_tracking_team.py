"""MLflow in `team` trust: what belongs to a project is its members', by every route and in every spelling; for others it is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from running import wait_for
from team_world import Team

from cellwork_hub import boundary
from cellwork_hub.tracking import RULES

pytestmark = pytest.mark.timeout(600)
API, API3 = "/services/mlflow/api/2.0/mlflow", "/services/mlflow/api/3.0/mlflow"
ARTIFACTS = "/services/mlflow/api/2.0/mlflow-artifacts/artifacts"
Things = dict[str, str]


@pytest.fixture(scope="module")
def anna(team: Team) -> Iterator[httpx.Client]:
    team.people["anna"].client().projects.create("mine-of-anna")
    with team.http(team.people["anna"].token()) as http:
        yield http


@pytest.fixture(scope="module")
def bert(team: Team) -> Iterator[httpx.Client]:
    """Somebody with the same role and a project of his own."""
    team.people["bert"].client().projects.create("own-of-bert")
    with team.http(team.people["bert"].token()) as http:
        yield http


def made(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def things(http: httpx.Client, project: str) -> Things:
    """Make one of each in `project`: experiment, run with a metric and a file, logged model, registered model with a version."""
    experiment = made(http.post(f"{API}/experiments/create", json={"name": f"{project}.tries"}))["experiment_id"]
    run = made(http.post(f"{API}/runs/create", json={"experiment_id": experiment, "start_time": 1}))["run"]["info"]["run_id"]  # fmt: skip
    made(http.post(f"{API}/runs/log-metric", json={"run_id": run, "key": "auc", "value": 0.5, "timestamp": 1}))
    path = f"{experiment}/{run}/artifacts/note.txt"
    assert http.put(f"{ARTIFACTS}/{path}", content=b"secret").status_code == 200
    asked = {"experiment_id": experiment, "name": "m", "source_run_id": run}
    logged = made(http.post(f"{API}/logged-models", json=asked))["model"]["info"]["model_id"]
    model = f"{project}.delay"
    made(http.post(f"{API}/registered-models/create", json={"name": model}))
    made(http.post(f"{API}/model-versions/create", json={"name": model, "source": f"runs:/{run}/artifacts", "run_id": run}))  # fmt: skip
    return {"experiment": experiment, "run": run, "path": path, "logged": logged, "model": model}


@pytest.fixture(scope="module")
def hers(anna: httpx.Client) -> Things:
    return things(anna, "mine-of-anna")


@pytest.fixture(scope="module")
def his(bert: httpx.Client) -> Things:
    return things(bert, "own-of-bert")


def requests(it: Things) -> list[tuple[str, str, dict[str, Any]]]:
    """Return a request for every way to one of the things: method, path with query, body."""
    e, r, m, n = it["experiment"], it["run"], it["logged"], it["model"]
    name = n.replace("delay", "tries")
    return [
        ("GET", f"{API}/experiments/get?experiment_id={e}", {}), ("GET", f"{API}/experiments/get-by-name?experiment_name={name}", {}),
        ("GET", f"{API}/experiments/get", {"experiment_id": e}), ("GET", f"{API}/experiments/get", {"experimentId": e}),
        ("POST", f"{API}/experiments/update", {"experiment_id": e, "new_name": name + "2"}), ("POST", f"{API}/experiments/update", {"experimentId": e, "newName": name}),
        ("POST", f"{API}/experiments/set-experiment-tag", {"experiment_id": e, "key": "k", "value": "v"}), ("POST", f"{API}/experiments/delete-experiment-tag", {"experiment_id": e, "key": "k"}),
        ("POST", f"{API}/experiments/search-datasets", {"experiment_ids": [e]}),
        ("GET", f"{API}/runs/get?run_id={r}", {}), ("GET", f"{API}/runs/get?run_uuid={r}", {}), ("GET", f"{API}/runs/get", {"runId": r}),
        ("POST", f"{API}/runs/search", {"experiment_ids": [e]}), ("POST", f"{API}/runs/search", {"experimentIds": [e]}), ("POST", f"{API}/runs/search", {"experiment_ids": [int(e)]}),
        ("POST", f"{API}/runs/create", {"experiment_id": e, "start_time": 1}), ("POST", f"{API}/runs/set-tag", {"run_id": r, "key": "k", "value": "v"}), ("POST", f"{API}/runs/delete-tag", {"run_id": r, "key": "k"}),
        ("POST", f"{API}/runs/log-metric", {"run_id": r, "key": "auc", "value": 1, "timestamp": 2}), ("POST", f"{API}/runs/log-parameter", {"run_id": r, "key": "p", "value": "1"}),
        ("POST", f"{API}/runs/log-batch", {"run_id": r, "metrics": [{"key": "auc", "value": 1, "timestamp": 2, "step": 1}]}), ("POST", f"{API}/runs/log-batch", {"runId": r, "params": []}),
        ("POST", f"{API}/runs/update", {"run_id": r, "status": "FINISHED"}), ("POST", f"{API}/runs/outputs", {"run_id": r, "models": [{"model_id": m, "step": 0}]}),
        ("POST", f"{API}/runs/log-inputs", {"run_id": r, "datasets": []}),
        ("GET", f"{API}/metrics/get-history?run_id={r}&metric_key=auc", {}), ("GET", f"/services/mlflow/ajax-api/2.0/mlflow/metrics/get-history-bulk?run_id={r}&metric_key=auc", {}),
        ("GET", f"/services/mlflow/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids={r}&metric_key=auc&max_results=5", {}),
        ("GET", f"{API}/artifacts/list?run_id={r}", {}), ("GET", f"/services/mlflow/get-artifact?run_id={r}&path=note.txt", {}), ("GET", f"/services/mlflow/get-artifact?run_uuid={r}&path=note.txt", {}),
        ("GET", f"{ARTIFACTS}/{it['path']}", {}), ("GET", f"{ARTIFACTS}?path={e}/{r}", {}), ("GET", f"{ARTIFACTS}?path={e}", {}), ("PUT", f"{ARTIFACTS}/{e}/{r}/artifacts/more.txt", {}),
        ("GET", f"{API}/logged-models/{m}", {}), ("PATCH", f"{API}/logged-models/{m}/tags", {"tags": [{"key": "k", "value": "v"}]}), ("POST", f"{API}/logged-models/search", {"experiment_ids": [e]}),
        ("POST", f"{API}/logged-models", {"experiment_id": e, "name": "x"}), ("GET", f"{API}/logged-models/{m}/artifacts/directories", {}),
        ("POST", f"{API}/logged-models/{m}/params", {"params": []}), ("PATCH", f"{API}/logged-models/{m}", {"model_id": m, "status": "LOGGED_MODEL_READY"}), ("DELETE", f"{API}/logged-models/{m}/tags/k", {}),
        ("DELETE", f"{API}/registered-models/delete-tag", {"name": n, "key": "k"}), ("DELETE", f"{API}/model-versions/delete-tag", {"name": n, "version": "1", "key": "k"}),
        ("GET", f"{API}/registered-models/get?name={n}", {}), ("GET", f"{API}/registered-models/get", {"name": n}), ("PATCH", f"{API}/registered-models/update", {"name": n, "description": "d"}),
        ("POST", f"{API}/registered-models/get-latest-versions", {"name": n}), ("POST", f"{API}/registered-models/set-tag", {"name": n, "key": "k", "value": "v"}),
        ("POST", f"{API}/registered-models/alias", {"name": n, "alias": "mine", "version": "1"}), ("GET", f"{API}/registered-models/alias?name={n}&alias=mine", {}),
        ("GET", f"{API}/model-versions/get?name={n}&version=1", {}), ("GET", f"{API}/model-versions/get-download-uri?name={n}&version=1", {}),
        ("POST", f"{API}/model-versions/set-tag", {"name": n, "version": "1", "key": "k", "value": "v"}), ("PATCH", f"{API}/model-versions/update", {"name": n, "version": "1", "description": "d"}),
        ("POST", f"{API}/model-versions/create", {"name": n, "source": f"runs:/{r}/artifacts"}),
        ("GET", f"/services/mlflow/model-versions/get-artifact?name={n}&version=1&path=note.txt", {}),
        ("POST", f"{API3}/traces/search", {"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": e}}]}), ("POST", f"{API3}/datasets/search", {"experiment_ids": [e]}),
        *(("POST", "/services/mlflow/graphql", body) for body in graph(it)),
    ]  # fmt: skip


def graph(it: Things) -> list[dict[str, Any]]:
    """Return queries of the graph by variable, in the text, and as one of two fields."""
    inner = f'mlflowGetRun(input: {{runId: "{it["run"]}"}}) {{ run {{ info {{ runId }} }} }}'
    return [
        {"query": "query A($data: MlflowGetRunInput!) { mlflowGetRun(input: $data) { run { info { runId } } } }", "variables": {"data": {"runId": it["run"]}}},
        {"query": "query A($id: String!) { mlflowGetRun(input: {runId: $id}) { run { info { runId } } } }", "variables": {"id": it["run"]}},
        {"query": f"query A {{ {inner} }}"},
        {"query": f'query B {{ mlflowGetExperiment(input: {{experimentId: "{it["experiment"]}"}}) {{ experiment {{ name }} }} }}'},
        {"query": f'mutation {{ mlflowSearchRuns(input: {{experimentIds: ["{it["experiment"]}"]}}) {{ runs {{ info {{ runId }} }} }} }}'},
    ]  # fmt: skip


def test_nothing_of_a_project_is_there_for_who_is_no_member(bert: httpx.Client, hers: Things) -> None:
    said = {(m, p, json.dumps(b)): bert.request(m, p, json=b) for m, p, b in requests(hers)}
    assert {asked: answer.text for asked, answer in said.items() if answer.status_code not in (400, 403, 404)} == {}
    assert not any("secret" in answer.text or '"auc"' in answer.text for answer in said.values())


def test_the_same_requests_are_answered_to_its_members(anna: httpx.Client, his: Things, hers: Things) -> None:
    """The other side: what is kept from others is not kept from her. Some of it MLflow itself refuses, in its own words."""
    refused = {}
    for method, path, body in requests(hers):
        answer = anna.request(method, path, json=body)
        if answer.status_code != 200 and "way_out" in answer.text:
            refused[method, path, json.dumps(body)] = answer.text
    assert refused == {}


def test_every_way_that_the_door_opens_is_among_the_requests(hers: Things) -> None:
    """A rule that is added later needs a request above, or belongs to nobody, or is a list."""
    asked = {(m, re.sub(r"^/services/mlflow|\?.*$", "", p)) for m, p, _ in requests(hers)}
    left = [
        rule.pattern.pattern
        for rule in RULES
        if rule.scope and not any(m in rule.methods.split() and rule.pattern.fullmatch(p) for m, p in asked)
    ]
    known = ("/|/version", "server-info", "experiments/create", "traces/get")
    assert [pattern for pattern in left if not any(word in pattern for word in known)] == []


def test_lists_hold_the_callers_part_and_pages_go_on(bert: httpx.Client, his: Things, hers: Things) -> None:
    for path, key in (("experiments", "experiments"), ("registered-models", "registered_models"), ("model-versions", "model_versions")):  # fmt: skip
        names: set[str] = set()
        token = ""
        for _ in range(100):
            answer = bert.get(f"{API}/{path}/search", params={"max_results": 1, "page_token": token})
            page = made(answer)
            names |= {entry["name"] for entry in page.get(key, [])}
            token = page.get("next_page_token", "")
            if not token:
                break
        assert names
        assert {name.partition(".")[0] for name in names} == {"own-of-bert"}


def test_what_joins_two_projects_is_refused(bert: httpx.Client, his: Things, hers: Things) -> None:
    for path, body in (
        ("model-versions/create", {"name": his["model"], "source": f"runs:/{hers['run']}/artifacts"}),
        ("model-versions/create", {"name": his["model"], "source": f"mlflow-artifacts:/{hers['path']}"}),
        ("model-versions/create", {"name": his["model"], "source": f"models:/{hers['logged']}"}),
        ("model-versions/create", {"name": his["model"], "source": f"models:/{hers['model']}/1"}),
        ("model-versions/create", {"name": his["model"], "source": f"runs:/{his['run']}/a", "runId": hers["run"]}),
        ("runs/search", {"experiment_ids": [his["experiment"], hers["experiment"]]}),
        ("runs/search", {"experiment_ids": [his["experiment"]], "experimentIds": [hers["experiment"]]}),
        ("runs/outputs", {"run_id": his["run"], "models": [{"modelId": hers["logged"], "step": 0}]}),
        ("experiments/create", {"name": "mine-of-anna.other"}),
        ("experiments/create", {"name": "nobodys"}),
        ("experiments/update", {"experiment_id": his["experiment"], "new_name": "mine-of-anna.taken"}),
        ("registered-models/create", {"name": "mine-of-anna.other"}),
    ):
        assert bert.post(f"{API}/{path}", json=body).status_code in (400, 404), (path, body)
    own = f'mlflowGetExperiment(input: {{experimentId: "{his["experiment"]}"}}) {{ experiment {{ name }} }}'
    run = "mlflowGetRun(input: {runId: $id}) { run { info { runId } } }"
    for asked in (
        {"query": f"query A($id: String!) {{ {own} {run} }}", "variables": {"id": hers["run"]}},
        {"query": f'query A($id: String = "{hers["run"]}") {{ {own} {run} }}'},
        {"query": "query A { mlflowSearchModelVersions(input: {}) { modelVersions { name } } }"},
        {"query": f"query A {{ {own} ...more }} fragment more on Query {{ mlflowGetRun(input: {{runId: \"{hers['run']}\"}}) {{ run {{ info {{ runId }} }} }} }}"},
    ):  # fmt: skip
        answer = bert.post("/services/mlflow/graphql", json=asked)
        assert answer.status_code in (400, 403, 404), asked
    for path in ("runs/search", "logged-models/search", "runs/create"):
        assert bert.post(f"{API}/{path}", json={}).status_code == 400
    assert bert.get(ARTIFACTS).status_code == 400
    for path in (f"{his['experiment']}/../{hers['path']}", f"{his['experiment']}%2f..%2f{hers['path']}", f"./{hers['path']}"):  # fmt: skip
        assert bert.get(f"{ARTIFACTS}?path={path}").status_code in (400, 403, 404)


def test_a_new_member_is_let_in_at_once_and_one_who_left_stays_out(
    team: Team, bert: httpx.Client, hers: Things
) -> None:
    path = f"{API}/runs/get?run_id={hers['run']}"
    assert bert.get(path).status_code == 404
    projects = team.people["anna"].client().projects
    projects.add("mine-of-anna", "bert")
    wait_for(lambda: bert.get(path).status_code == 200, 60, "the membership")
    projects.remove("mine-of-anna", "bert")
    wait_for(lambda: bert.get(path).status_code == 404, 60, "the end of the membership")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"a": [{"b": {"runIds": ["x", 2]}}]}, {("run", "x"), ("run", "2")}),
        ({"experimentId": 7, "model_id": None, "runUuid": ""}, {("experiment", "7")}),
    ],
)
def test_what_a_body_names_is_found_at_any_depth_and_in_both_spellings(body: Any, found: Any) -> None:
    assert boundary.named("/api/2.0/mlflow/runs/x", b"", body) == found
