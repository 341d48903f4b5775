"""MLflow behind the login: its own client works with a notebook's token; what is reserved, registered or not opened is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from running import Platform
from shop_world import Toured

from cellwork import scopes
from cellwork.errors import Refused
from cellwork.models import versions
from cellwork_hub.config.roles import OWNER
from cellwork_hub.tracking import RULES

API = "/services/mlflow/api/2.0/mlflow"
ARTIFACTS = "/services/mlflow/api/2.0/mlflow-artifacts/artifacts"


@dataclass(frozen=True)
class Registered:
    name: str
    folder: str
    """The version's artifact folder, below the artifact root."""


@pytest.fixture(scope="module")
def token(platform: Platform) -> str:
    """What a notebook of the user carries."""
    return platform.user_token("access:services!service=mlflow", *map(scopes.to_hub, sorted(OWNER)))


@pytest.fixture(scope="module")
def user(platform: Platform, token: str) -> Iterator[httpx.Client]:
    with platform.http(token) as http:
        yield http


@pytest.fixture(scope="module")
def service(platform: Platform) -> Iterator[httpx.Client]:
    """The platform service, which may do what others may not."""
    with platform.http(platform.token("cellwork")) as http:
        yield http


@pytest.fixture(scope="module")
def client(platform: Platform, token: str) -> Iterator[Any]:
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_TOKEN", token)
        yield mlflow.MlflowClient(f"{platform.url}/services/mlflow")


@pytest.fixture(scope="module")
def model(client: Any, platform: Platform, token: str) -> Registered:
    """A model that MLflow's own client logged and registered."""
    import mlflow
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_TOKEN", token)
        mlflow.set_tracking_uri(f"{platform.url}/services/mlflow")
        mlflow.set_experiment("trial")
        fitted = LogisticRegression().fit(np.array([[0.0], [1.0]]), [0, 1])
        with mlflow.start_run():
            mlflow.log_metric("auc", 0.7)
            mlflow.log_param("depth", 3)
            logged = mlflow.sklearn.log_model(
                fitted, name="model", pip_requirements=["scikit-learn"], registered_model_name="trial.delay"
            )
        location = mlflow.get_logged_model(logged.model_id).artifact_location
        mlflow.set_tracking_uri(None)
    return Registered("trial.delay", location.removeprefix("mlflow-artifacts:/").strip("/"))


def test_mlflows_client_logs_registers_sets_its_own_alias_and_loads(
    client: Any, model: Registered, platform: Platform, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    run = client.search_runs([client.get_experiment_by_name("trial").experiment_id])[0]
    assert (run.data.metrics, run.data.params) == ({"auc": 0.7}, {"depth": "3"})
    client.set_registered_model_alias(model.name, "mine", 1)
    mlflow.set_tracking_uri(f"{platform.url}/services/mlflow")
    loaded = mlflow.sklearn.load_model(f"models:/{model.name}@mine")
    mlflow.set_tracking_uri(None)
    assert loaded.predict([[0.0], [1.0]]).tolist() == [0, 1]
    assert client.get_model_version_by_alias(model.name, "mine").version == "1"


@pytest.mark.parametrize("alias", ["champion", "previous", "candidate", "Champion"])
def test_a_reserved_alias_is_the_platforms_alone(
    client: Any, service: httpx.Client, model: Registered, alias: str
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="is set by evaluation and deployment only") as caught:
        client.set_registered_model_alias(model.name, alias, 1)
    assert caught.value.error_code == "PERMISSION_DENIED"
    answer = service.post(f"{API}/registered-models/alias", json={"name": model.name, "alias": alias, "version": "1"})
    assert answer.status_code == 200
    with pytest.raises(MlflowException):
        client.delete_registered_model_alias(model.name, alias)
    assert (
        service.request(
            "DELETE", f"{API}/registered-models/alias", json={"name": model.name, "alias": alias}
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    "disguise",
    [
        lambda body: json.dumps(json.dumps(body)).encode(),
        lambda body: json.dumps(json.dumps(body)).replace("champion", "\\\\u0063hampion").encode(),
        lambda body: json.dumps(body).encode("utf-16"),
        lambda body: json.dumps(body).replace('"alias"', '"alias": "mine", "alias"').encode(),
        lambda body: b"\xef\xbb\xbf" + json.dumps(body).encode(),
        lambda body: json.dumps(body).replace("champion", "\\u0063hampion").encode(),
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        f"{API}/registered-models/alias",
        API.replace("/api/", "/ajax-api/") + "/registered-models/alias",
        f"{API}/registered-models/alias?alias=mine",
    ],
)
def test_a_reserved_alias_in_disguise_is_not_set(
    user: httpx.Client, service: httpx.Client, model: Registered, disguise: Any, path: str
) -> None:
    body = {"name": model.name, "alias": "champion", "version": "1"}
    answer = user.post(path, content=disguise(body), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 403)
    found = service.get(f"{API}/registered-models/get", params={"name": model.name}).json()["registered_model"]
    assert "champion" not in {each["alias"] for each in found.get("aliases", [])}


@pytest.fixture(scope="module")
def trained(toured: Toured) -> dict[str, str]:
    """The tags of a version that an author registered with the library."""
    return {versions.TAG + key: value for key, value in versions.get(toured.client, "shop/tardy", 1).tags.items()}


def test_a_tag_of_the_platform_is_changed_on_nothing_and_by_nobody_else(
    client: Any, service: httpx.Client, model: Registered, toured: Toured, trained: dict[str, str]
) -> None:
    """What the gate and `why` go by: another dataset, a weaker baseline, another author after the fact."""
    from mlflow.entities import RunTag
    from mlflow.exceptions import MlflowException

    name, version = "shop.tardy", client.get_model_version("shop.tardy", "1")
    experiment = client.get_experiment_by_name("shop").experiment_id
    logged = version.source.removeprefix("models:/")
    for attempt in (
        lambda: client.set_model_version_tag(name, "1", "cellwork.dataset", "ds_other"),
        lambda: client.set_model_version_tag(name, "1", "Cellwork.dataset", "ds_other"),
        lambda: client.delete_model_version_tag(name, "1", "cellwork.baseline"),
        lambda: client.set_registered_model_tag(name, "cellwork.owner", "me"),
        lambda: client.delete_registered_model_tag(name, "cellwork.owner"),
        lambda: client.create_registered_model("trial.tagged", tags={"cellwork.owner": "me"}),
        lambda: client.set_tag(version.run_id, "cellwork.user", "me"),
        lambda: client.log_batch(version.run_id, tags=[RunTag("fine", "1"), RunTag("cellwork.user", "me")]),
        lambda: client.delete_tag(version.run_id, "cellwork.user"),
        lambda: client.set_logged_model_tags(logged, {"cellwork.digest": "0" * 64}),
        lambda: client.delete_logged_model_tag(logged, "cellwork.digest"),
        lambda: client.set_experiment_tag(experiment, "cellwork.owner", "me"),
        lambda: client.create_experiment("trial-tagged", tags={"cellwork.owner": "me"}),
    ):
        with pytest.raises(MlflowException, match="is the platform's to write"):
            attempt()
    after = {versions.TAG + key: value for key, value in versions.get(toured.client, "shop/tardy", 1).tags.items()}
    assert after == trained
    client.set_model_version_tag(name, "1", "mine", "kept")
    assert client.get_model_version(name, "1").tags["mine"] == "kept"
    body = {"name": model.name, "key": "cellwork.note", "value": "by the platform"}
    assert service.post(f"{API}/registered-models/set-tag", json=body).status_code == 200


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("shop.forged", {"dataset": "ds_" + "0" * 26}, "is no dataset of this platform"),
        ("trial.delay", {}, "is of project 'shop', the model of 'trial'"),
        ("shop.forged", {"dataset_sha256": "0" * 64}, "is not what dataset ds_.* says"),
        ("shop.forged", {"label": "weight"}, "is not what dataset ds_.* says"),
        ("shop.forged", {"digest": "none"}, "is no SHA-256 of a model folder"),
        ("shop.forged", {"run": "run_" + "0" * 26}, "is no run of this platform"),
    ],
)
def test_a_version_is_not_made_with_a_tag_that_is_not_true(
    client: Any, model: Registered, trained: dict[str, str], name: str, changes: dict[str, str], verdict: str
) -> None:
    from mlflow.exceptions import MlflowException

    if name == "shop.forged" and not client.search_registered_models("name = 'shop.forged'"):
        client.create_registered_model(name)
    made = client.get_model_version(model.name, "1")
    tags = {**trained, **{versions.TAG + key: value for key, value in changes.items()}}
    with pytest.raises(MlflowException, match=verdict) as caught:
        client.create_model_version(name, made.source, tags=tags)
    assert caught.value.error_code == "PERMISSION_DENIED"


def test_a_run_of_somebody_else_is_nobodys_to_name(client: Any, platform: Platform, model: Registered) -> None:
    """The service `cli` speaks with the widest role, and is not the user whose run it names."""
    runs = platform.client().jobs.runs(project="shop")
    theirs = next(run for run in runs if run.principal == platform.user)
    with platform.http(platform.token("cli")) as http:
        body = {"experiment_id": "0", "tags": [{"key": "cellwork.run", "value": theirs.id}]}
        answer = http.post(f"{API}/runs/create", json=body)
    assert (answer.status_code, "is a run of 'ada'" in answer.json()["message"]) == (403, True)


def test_a_run_says_who_made_it_whatever_its_maker_said(client: Any, platform: Platform, user: httpx.Client) -> None:
    experiment = client.get_experiment_by_name("trial").experiment_id
    run = client.create_run(experiment, tags={"cellwork.user": "eve", "cellwork.notebook": "n.ipynb", "mine": "1"})
    assert {
        "cellwork.user": platform.user,
        "cellwork.notebook": "n.ipynb",
        "mine": "1",
    }.items() <= run.data.tags.items()
    twice = [{"key": "cellwork.user", "value": "eve"}] * 2
    assert user.post(f"{API}/runs/create", json={"experiment_id": experiment, "tags": twice}).status_code == 400


def test_what_is_registered_is_neither_deleted_renamed_nor_moved(
    client: Any, user: httpx.Client, model: Registered
) -> None:
    from mlflow.exceptions import MlflowException

    for attempt in (
        lambda: client.delete_registered_model(model.name),
        lambda: client.delete_model_version(model.name, "1"),
        lambda: client.rename_registered_model(model.name, "other"),
        lambda: client.delete_logged_model(model.folder.split("/")[2]),
    ):
        with pytest.raises(MlflowException, match="is the platform's alone"):
            attempt()
    assert client.get_model_version(model.name, "1").version == "1"


def test_nothing_that_mlflows_client_can_do_makes_a_champion(client: Any, toured: Toured, model: Registered) -> None:
    """A copy of another model under the champion's name becomes a version, and nothing more: the gate asks where it comes from."""
    from mlflow.exceptions import MlflowException

    name = "shop.tardy"
    before = versions.aliases(toured.client, "shop/tardy")
    champion = str(before["champion"])
    for attempt in (
        lambda: client.set_registered_model_alias(name, "champion", "1" if champion != "1" else "2"),
        lambda: client.delete_registered_model_alias(name, "champion"),
        lambda: client.transition_model_version_stage(name, champion, "Archived"),
        lambda: client.delete_model_version(name, champion),
        lambda: client.rename_registered_model(name, "shop.other"),
        lambda: client.delete_registered_model(name),
    ):
        with pytest.raises(MlflowException, match=r"PERMISSION_DENIED|platform's alone|evaluation and deployment only"):
            attempt()
    copied = client.copy_model_version(f"models:/{model.name}/1", name)
    client.update_model_version(name, copied.version, "passed the gate, promise")
    client.set_model_version_tag(name, copied.version, "gate", "passed")
    found = toured.client.gate.check("shop/tardy", int(copied.version))
    assert {"origin", "content", "evaluation"} <= {check.name for check in found.checks if not check.passed}
    with pytest.raises(Refused, match="does not pass the gate"):
        toured.client.gate.promote("shop/tardy", int(copied.version))
    assert versions.aliases(toured.client, "shop/tardy") == before
    assert toured.client.gate.moves("shop/tardy")


@pytest.mark.parametrize(
    "path",
    [
        "{folder}/MLmodel",
        "/{folder}/MLmodel",
        "{folder}/new/file",
        "{encoded}/MLmodel",
        "{folder}/../artifacts/MLmodel",
        "./{folder}/MLmodel",
        "{folder}//MLmodel",
        "{folder}",
    ],
)
def test_the_files_of_a_registered_version_stay(
    user: httpx.Client, platform: Platform, model: Registered, path: str
) -> None:
    folder = platform.home / "mlflow" / "artifacts" / model.folder
    before = sorted((str(file), file.read_bytes()) for file in folder.rglob("*") if file.is_file())
    assert before
    target = path.format(folder=model.folder, encoded=model.folder.replace("/", "%2f"))
    for base in (ARTIFACTS, ARTIFACTS.replace("/api/", "/ajax-api/")):
        raw = httpx.URL(f"{platform.url}{base}/").copy_with(raw_path=f"{base}/{target}".encode())
        assert user.request("PUT", raw, content=b"evil").status_code in (400, 403)
        assert user.delete(raw).status_code in (400, 403)
    assert before == sorted((str(file), file.read_bytes()) for file in folder.rglob("*") if file.is_file())


def test_other_artifacts_can_be_written_and_read(user: httpx.Client) -> None:
    assert user.put(f"{ARTIFACTS}/1/notes/a.txt", content=b"hello").status_code == 200
    assert user.get(f"{ARTIFACTS}/1/notes/a.txt").content == b"hello"


@pytest.mark.parametrize(
    "location", ["file:///etc", "/etc", "s3://bucket", "mlflow-artifacts-x:/", "http://example.org/x"]
)
def test_artifacts_lie_nowhere_but_at_the_platform(user: httpx.Client, location: str, model: Registered) -> None:
    for spelling in ("artifact_location", "artifactLocation"):
        answer = user.post(f"{API}/experiments/create", json={"name": f"trial-{location}", spelling: location})
        assert answer.status_code == 403
    answer = user.post(f"{API}/model-versions/create", json={"name": model.name, "source": location})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gateway/x/mlflow/invocations"),
        ("GET", "/ajax-api/2.0/mlflow/gateway-proxy"),
        ("GET", "/api/3.0/mlflow/gateway/secrets/list"),
        ("POST", "/ajax-api/3.0/jobs"),
        ("GET", "/ajax-api/3.0/mlflow/assistant/config"),
        ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
        ("POST", "/v1/traces"),
        ("GET", "/api/2.0/mlflow/webhooks"),
        ("POST", "/api/2.0/mlflow/webhooks"),
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact"),
        ("POST", "/api/2.0/mlflow-artifacts/mpu/create/1/x"),
        ("POST", "/ajax-api/3.0/mlflow/demo/generate"),
        ("GET", "/metrics"),
        ("GET", "/health"),
        ("GET", "/nothing"),
    ],
)
def test_what_no_rule_names_is_closed_even_to_the_platform(
    user: httpx.Client, service: httpx.Client, method: str, path: str
) -> None:
    for http in (user, service):
        assert http.request(method, f"/services/mlflow{path}").status_code == 403


def test_reading_needs_the_read_scope_and_writing_the_write_scope(platform: Platform) -> None:
    reader = platform.user_token("access:services!service=mlflow", scopes.to_hub("models:read"))
    with platform.http(reader) as http:
        assert http.post(f"{API}/experiments/search", json={"max_results": 1}).status_code == 200
        assert http.post(f"{API}/experiments/create", json={"name": "reader"}).status_code == 403
        assert http.put(f"{ARTIFACTS}/1/notes/b.txt", content=b"x").status_code == 403


def test_every_route_that_mlflow_has_is_opened_knowingly_or_closed() -> None:
    """The table of what MLflow 3.17 offers and no rule opens: a new route of a new version is closed, and shows up here."""
    from mlflow.server import handlers

    opened = set()
    for path, _, methods, *_ in handlers.get_endpoints():
        example = path.replace("<path:artifact_path>", "1/x")
        example = "/".join("x" if part.startswith("<") else part for part in example.split("/"))
        opened |= {
            (m, path)
            for m in methods
            for rule in RULES
            if m in rule.methods.split() and rule.pattern.fullmatch(example)
        }
    families = {path.split("/mlflow/")[-1].split("/")[0] for _, path in opened if "/mlflow/" in path}
    assert families == {
        *("artifacts", "datasets", "experiments", "logged-models", "metrics", "model-versions"),
        *("registered-models", "runs", "server-info", "traces"),
    }
    assert not any(
        word in path
        for _, path in opened
        for word in ("gateway", "webhook", "jobs", "assistant", "scorer", "mpu", "presigned", "issues", "workspaces")
    )


def test_the_user_interface_loads(platform: Platform) -> None:
    with platform.browser() as browser:
        page = platform.login(browser, page="/services/mlflow/")
        assert page.status_code == 200
        asset = page.text.partition('src="')[2].partition('"')[0].lstrip("./")
        assert browser.get(f"/services/mlflow/{asset}").status_code == 200
