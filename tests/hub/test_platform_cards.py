"""Model cards over HTTP and on the command line: what stands on them, and that what an author wrote only shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import evaluation_world
import httpx
import pytest
import serving_world
from click.testing import CliRunner
from evaluation_world import GOOD, World
from ports import free_port
from raw_platform import call

from cellwork.cli import main
from cellwork.client import Client
from cellwork.features import transform
from cellwork.models import card, package, registry
from cellwork.models.columns import to_pandas
from cellwork.wire.cards import Card
from cellwork.wire.gate import OverrideRequest
from cellwork_hub.edge import Service
from cellwork_hub.platform import cards, gate_rules, promotion

EVIL = "<script>alert(1)</script> | [x](javascript:alert(1))\n# Title"


@pytest.fixture(scope="module")
def world() -> World:
    return evaluation_world.world()


@pytest.fixture(scope="module")
def url(world: World) -> Iterator[str]:
    service = Service("cellwork", cards.routes(world.state), authorise=serving_world.authorise)
    with serving_world.running(lambda: service, free_port()) as url:
        yield url


@pytest.fixture(scope="module")
def version(world: World) -> int:
    """A version that was evaluated twice, let pass one line, promoted."""
    number = world.register("carded", ["gate"], description=EVIL, metrics={"roc_auc": 0.53}, parameters={"C": 1.0})
    world.evaluate("carded", number)
    world.evaluate("carded", number)
    request = OverrideRequest(name="rail/carded", version=number, check="baseline", reason=f"a trial {EVIL}")
    found = promotion.gate(world.state, "rail/carded", number)
    with world.state.context.client("cellwork") as client:
        gate_rules.override(world.state, client, call(), request, found)
    world.promote("carded", number)
    return number


@pytest.fixture(scope="module")
def found(url: str, version: int) -> Card:
    with Client(url, "viewer") as client:
        return client.evaluations.card("rail/carded", version)


def test_a_card_says_where_a_version_comes_from_and_what_was_found(world: World, found: Card) -> None:
    assert (found.owner, found.baseline, found.kind, found.aliases) == ("ada", "hour", "classifier", ["champion"])
    assert found.origin["user"] == "ada"
    assert found.dataset is not None
    assert (found.dataset.id, found.dataset.batches) == (world.dataset.id, world.dataset.batches)
    assert found.dataset.feature_sets
    assert all(each.startswith("fset_") for each in found.dataset.feature_sets)
    assert (found.validation, found.parameters) == ({"roc_auc": 0.53}, {"C": "1.0"})
    assert found.columns == ["gate (text)"]
    assert [(each.holdout, each.by_this_version) for each in found.questions] == [("last", 2)]
    assert found.questions[0].by_project >= 2
    assert len(found.evaluations) == 2
    assert found.evaluations[0].latency is not None
    assert [word.check for word in found.overrides] == ["baseline"]
    assert found.moves[0].gate is not None
    assert found.gaps == []


def test_the_environment_is_every_package_that_the_model_needs(found: Card) -> None:
    import sklearn

    pins = dict(line.split("==") for line in found.environment)
    assert pins["scikit-learn"] == sklearn.__version__
    assert {"numpy", "scipy", "joblib", "threadpoolctl", "pandas", "skops"} <= pins.keys()
    assert not {"jupyterhub", "mlflow", "xgboost"} & pins.keys()
    assert found.python.count(".") == 2


@pytest.mark.parametrize("write", [card.markdown, card.html])
def test_what_an_author_wrote_shows_and_does_nothing(found: Card, write: Callable[[Card], str]) -> None:
    said = write(found)
    assert "<script" not in said
    assert write is card.html or ("\n# Title" not in said and "](javascript" not in said)
    for part in (found.version.digest, "ada", "training", "Overrides", "asked 2 times for this version"):
        assert part in said


def test_a_card_is_read_as_a_page_and_by_the_command_line(
    url: str, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{url}/services/cellwork/api/v1/cards/rail/carded/{version}"
    headers = {"authorization": "Bearer viewer"}
    page = httpx.get(path, params={"format": "html"}, headers=headers, trust_env=False, timeout=60)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text.startswith("<!doctype html>")
    assert httpx.get(path, params={"format": "pdf"}, headers=headers, trust_env=False, timeout=60).status_code == 422
    assert httpx.get(path, trust_env=False, timeout=60).status_code == 401
    monkeypatch.setenv("CELLWORK_URL", url)
    monkeypatch.setenv("CELLWORK_TOKEN", "viewer")
    answer = CliRunner().invoke(main, ["model", "card", f"rail/carded@{version}"])
    assert (answer.exit_code, answer.output.splitlines()[0]) == (0, f"# rail/carded version {version}")
    file = tmp_path / "card.html"
    answer = CliRunner().invoke(main, ["model", "card", f"rail/carded@{version}", "--html", "--output", str(file)])
    assert (answer.exit_code, file.read_text()) == (0, page.text)


def test_a_version_whose_files_changed_still_has_a_card_that_says_so(world: World) -> None:
    from cellwork.models import versions

    number = world.register("torn", GOOD)
    path = versions.artifact_path(world.mlflow, "rail/torn", number)
    world.mlflow.connection.raw("mlflow", "PUT", f"/api/2.0/mlflow-artifacts/artifacts/{path}/{package.MODEL}", b"x")
    found = cards.card(world.state, "rail/torn", number)
    assert "is not what was registered" in found.gaps[0]
    assert "Was not evaluated on a sealed holdout" in card.markdown(found)


def test_the_platforms_own_steps_are_named_on_the_card(world: World) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    columns = ["hour", "crowd"]
    frame = to_pandas(world.frame.select(columns))
    model = make_pipeline(
        transform.Transform([transform.impute(*columns), transform.scale(*columns)]), LogisticRegression()
    )
    model.fit(frame, world.frame["late"].to_numpy())
    ref = registry.register(
        model, "rail/steps", dataset=world.dataset, X_example=world.frame.select(columns), client=world.mlflow
    )
    assert cards.card(world.state, "rail/steps", ref.version).transformers == [model[0].recorded.id]
