"""Definition files: Feast's own objects and ours, collected, checked, and kept in a registry that Feast reads."""

from __future__ import annotations

import base64
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cellwork.errors import BadInput, NotFound
from cellwork.features import define
from cellwork.project import Project
from cellwork.wire.features import Aggregate, Rolling, Select

FILE = """
    from datetime import timedelta

    from feast import Entity, FeatureService, FeatureView, Field, ValueType
    from feast.types import Float32, Int64

    from cellwork.features import Aggregate, Observations, Prepared, RawDataset, Rolling, Select
    from cellwork.features.feast import PipelineSource

    flights = RawDataset(name="flights", key=["id"])
    weather_raw = RawDataset(name="weather")
    weather_utc = Prepared(name="weather_utc", sources=["weather"], sql="SELECT * FROM weather")
    landed = Prepared(name="landed", sources=["flights", "weather"], sql="SELECT * FROM flights")
    origin = Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING)
    weather = FeatureView(
        name="weather",
        entities=[origin],
        schema=[Field(name="temp", dtype=Float32, description="Fahrenheit"), Field(name="wind", dtype=Float32, tags={"default": "0"})],
        source=PipelineSource(Select(rows="weather_utc", event="time", known="known")),
        ttl=timedelta(hours=3),
        tags={"team": "ops"},
    )
    late = FeatureView(
        name="late",
        entities=[origin],
        schema=[Field(name="flights", dtype=Int64)],
        source=PipelineSource(Rolling(rows="landed", event="e", known="k", window="24h", every="1h", aggregates={"flights": Aggregate(function="count")})),
        online=False,
    )
    delay = FeatureService(name="delay", features=[weather[["temp"]], "late:flights"])
    everything = FeatureService(name="everything", features=[weather, late])
    again = weather
    departures = Observations(name="departures", rows="landed", id="id", at="asked", keys={"origin": "origin"}, inputs=["carrier"], label="late")
"""


def project(folder: Path, text: str = FILE, *replaced: tuple[str, str]) -> Project:
    source = textwrap.dedent(text)
    for old, new in replaced:
        assert old in source
        source = source.replace(old, new)
    path = folder / "definitions.py"
    path.write_text(source)
    return Project("air", folder, owner="ada", definitions=(path,))


def test_feasts_objects_and_ours_become_data(tmp_path):
    datasets, found = define.load(project(tmp_path))
    assert [dataset.name for dataset in datasets] == ["flights", "weather"]
    assert [prepared.name for prepared in found.prepared] == ["weather_utc", "landed"]
    assert [(entity.name, entity.join_keys) for entity in found.entities] == [("airport", ["origin"])]
    weather, late = found.views
    assert weather.pipeline == Select(rows="weather_utc", event="time", known="known")
    assert [(field.name, field.type, field.default) for field in weather.fields] == [
        ("temp", "Float32", None),
        ("wind", "Float32", 0),
    ]
    assert (weather.ttl, weather.owner, weather.tags, weather.online) == ("3h", "ada", {"team": "ops"}, True)
    assert isinstance(late.pipeline, Rolling)
    assert late.pipeline.aggregates == {"flights": Aggregate(function="count")}
    assert (late.ttl, late.online) == ("", False)
    assert {s.name: sorted(s.features) for s in found.services} == {
        "delay": ["late:flights", "weather:temp"],
        "everything": ["late:flights", "weather:temp", "weather:wind"],
    }
    assert found.observations[0].inputs == ["carrier"]


def test_feast_reads_our_registry_with_the_pipeline_in_it(tmp_path):
    from feast.infra.registry.registry import Registry
    from feast.repo_config import RegistryConfig

    found = define.load(project(tmp_path))[1]
    path = tmp_path / "registry.pb"
    path.write_bytes(base64.b64decode(found.feast_registry))
    registry = Registry("air", RegistryConfig(path=str(path)), None)
    views = {view.name: view for view in registry.list_feature_views("air")}
    assert views["late"].batch_source.pipeline == found.views[1].pipeline
    assert [field.name for field in views["weather"].features] == ["temp", "wind"]
    assert registry.get_entity("airport", "air").join_key == "origin"
    assert {service.name for service in registry.list_feature_services("air")} == {"delay", "everything"}
    assert len(registry.list_data_sources("air")) == 2


def test_a_source_survives_the_way_through_feasts_protobuf():
    from feast.data_source import DataSource

    from cellwork.features.feast import PipelineSource

    source = PipelineSource(Select(rows="r", event="e", known="k"), description="d", owner="ada", tags={"a": "b"})
    assert DataSource.from_proto(source.to_proto()) == source
    assert source != PipelineSource(Select(rows="r", event="e", known="k2"), name=source.name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('rows="weather_utc"', 'rows="wether_utc"', r"rows of view 'weather' 'wether_utc': is not defined; did you mean 'weather_utc'"),
        ('sources=["weather"]', 'sources=["whether"]', r"source of prepared 'weather_utc' 'whether'.*did you mean 'weather'"),
        ('"late:flights"', '"late:flight"', r"feature 'flight' not found on feature view 'late'|'flight': is not defined; did you mean 'flights'"),
        ('"late:flights"', '"lates:flights"', r"'lates': is not defined; did you mean 'late'"),
        ('keys={"origin"', 'keys={"airport"', r"join key of observations 'departures' 'airport': is not defined"),
        ('aggregates={"flights"', 'aggregates={"flight"', r"did you mean 'flight'"),
        ('Aggregate(function="count")', 'Aggregate(function="mean", column="late")', r"'mean': is cut in a field of Int64; make it Float64"),
        ('window="24h"', 'window="24 hours"', r"duration '24 hours'"),
        ('online=False', 'ttl=timedelta(hours=2)', r"is shorter than window and grid"),
        ('name="landed"', 'name="weather_utc"', r"Prepared 'weather_utc': is defined twice"),
        ('name="everything"', 'name="Every Thing"', r"'Every Thing': is not a name"),
        ('again = weather', 'again = wether', r"fails at line \d+ with NameError: name 'wether'"),
        ('again = weather', 'again = (', r"fails at line \d+ with SyntaxError"),
        ('source=PipelineSource(Select(rows="weather_utc", event="time", known="known"))', 'source=None', r"view 'weather' 'NoneType': is not a source of ours"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_was_meant(tmp_path, old, new, message):
    with pytest.raises(BadInput, match=message):
        define.load(project(tmp_path, FILE, (old, new)))


def test_a_file_that_is_not_there_is_named_with_the_setting(tmp_path):
    with pytest.raises(NotFound, match=r"definitions\.py.*\[features\] paths"):
        define.load(Project("air", tmp_path, definitions=(tmp_path / "definitions.py",)))


def test_a_file_may_import_its_neighbour_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "neighbour_of_definitions.py").write_text('SQL = "SELECT 1 AS one"\n')
    made = project(tmp_path, FILE, ("from datetime", "import neighbour_of_definitions\nfrom datetime"))
    before = list(sys.path)
    define.load(made)
    assert sys.path == before
    assert not any(name.startswith("cellwork_definitions") for name in sys.modules)
    assert "neighbour_of_definitions" not in sys.modules


def test_importing_the_author_api_loads_neither_feast_nor_polars():
    code = "import sys, cellwork.features, cellwork.features.define; print(sorted({'feast', 'polars', 'pandas', 'numpy'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "[]"
