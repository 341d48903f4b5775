"""The flights: raw data, feature pipelines and what is predicted.

Predicted is, 60 minutes before the scheduled departure, whether a flight arrives more than 15 minutes late. A feature may
know only what was known by then; so each row says when it was true and when it was known:

- the weather of an hour is known when the hour is over;
- a departure is known when the plane left, an outcome when it landed: actual departure plus elapsed time, never the schedule;
- `time_hour` is UTC, while `arr_time` is read on the clocks of the destination. Four destinations have no time zone in the
  data; their flights count as landed six hours after their time in the air, which is late but never too early;
- a cancelled or diverted flight has no outcome, so it has no label and reaches no average; it is still to be predicted.
"""

from __future__ import annotations

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float32, Int64

from cellwork.data import RawDataset, Seal
from cellwork.features import Aggregate, Label, Observations, Prepared, Rolling, Select
from cellwork.features.feast import PipelineSource

# Raw data. `source` is the file in the data folder; the outcomes of November go into the sealed holdout at ingest.

flights = RawDataset(
    name="flights",
    key=["year", "month", "day", "carrier", "flight", "origin"],
    description="Departures from New York's airports",
    source="flights.csv.zip",
    seals=[
        Seal(
            holdout="november",
            partitions=["2013-11*"],
            columns=["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"],
        )
    ],
)
weather = RawDataset(name="weather", description="Hourly weather at the origins", source="weather.csv")
planes = RawDataset(name="planes", key=["tailnum"], description="Aircraft by tail number", source="planes.csv")
airports = RawDataset(name="airports", key=["faa"], description="Airports and their time zones", source="airports.csv")

# Prepared rows: one SELECT each, run batch by batch.

legs = Prepared(
    name="legs",
    sources=["flights", "airports"],
    description="One row a scheduled flight, with UTC times; outcomes are null until they are known",
    sql="""
    WITH clock AS (
        SELECT flights.*, make_date(year, month, day) AS date, tzone,
               time_hour + to_minutes(minute) AS scheduled,
               time_hour + to_minutes(minute) + to_minutes(dep_delay) AS departed
        FROM flights LEFT JOIN airports ON faa = dest
    ), arrival AS (
        SELECT *, timezone(tzone, departed) AS left_at,
               date_trunc('day', timezone(tzone, departed)) + to_minutes(arr_time // 100 * 60 + arr_time % 100) AS on_clock
        FROM clock
    )
    SELECT strftime(date, '%Y-%m-%d') || '-' || carrier || flight || '-' || origin AS flight_id,
           carrier, origin, dest, coalesce(tailnum, 'unknown') AS tailnum, distance, hour,
           isodow(date) AS weekday,
           sched_dep_time // 100 * 60 + sched_dep_time % 100 AS departure_minute,
           sched_arr_time // 100 * 60 + sched_arr_time % 100 AS arrival_minute,
           scheduled,
           scheduled - INTERVAL 60 MINUTE AS predicted_at,
           departed,
           dep_delay,
           CAST(dep_delay > 15 AS INTEGER) AS left_late,
           CASE WHEN arr_delay IS NULL THEN NULL
                WHEN tzone IS NULL THEN departed + to_minutes(air_time) + INTERVAL 6 HOUR
                ELSE greatest(departed + to_minutes(air_time),
                              timezone(tzone, CASE WHEN on_clock < left_at THEN on_clock + INTERVAL 24 HOUR ELSE on_clock END))
           END AS landed,
           arr_delay,
           CAST(arr_delay > 15 AS INTEGER) AS late
    FROM arrival
    """,
)
hours = Prepared(
    name="hours",
    sources=["weather"],
    description="Hourly weather, known an hour later",
    sql="SELECT *, time_hour + INTERVAL 1 HOUR AS known FROM weather",
)
aircraft = Prepared(
    name="aircraft",
    sources=["planes"],
    description="What is known of a plane from the day it was registered",
    sql="SELECT *, TIMESTAMPTZ '2013-01-01 00:00:00+00' AS registered FROM planes",
)

# Entities and feature views: Feast's own objects on pipelines from prepared rows.

origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
destination = Entity(name="destination", join_keys=["dest"], value_type=ValueType.STRING)
plane = Entity(name="plane", join_keys=["tailnum"], value_type=ValueType.STRING)

DELAYS = {
    "late": Aggregate(function="mean", column="late"),
    "delay": Aggregate(function="mean", column="arr_delay"),
    "flights": Aggregate(function="count"),
}
DELAY_FIELDS = [
    Field(name="late", dtype=Float32, description="Share that arrived more than 15 minutes late"),
    Field(name="delay", dtype=Float32, description="Mean arrival delay in minutes"),
    Field(name="flights", dtype=Int64, description="Flights with an outcome"),
]

sky = FeatureView(
    name="sky",
    entities=[origin],
    schema=[
        Field(name=name, dtype=Float32)
        for name in (
            "temp",
            "dewp",
            "humid",
            "wind_dir",
            "wind_speed",
            "wind_gust",
            "precip",
            "pressure",
            "visib",
        )
    ],
    source=PipelineSource(Select(rows="hours", event="time_hour", known="known")),
    ttl=timedelta(hours=12),
    description="The last known hour of weather at the origin",
)
craft = FeatureView(
    name="craft",
    entities=[plane],
    schema=[
        Field(name="year", dtype=Int64, description="Year of manufacture"),
        Field(name="seats", dtype=Int64),
        Field(name="engines", dtype=Int64),
    ],
    source=PipelineSource(Select(rows="aircraft", event="registered", known="registered")),
    description="The aircraft",
)
departures_2h = FeatureView(
    name="departures_2h",
    entities=[origin],
    schema=[
        Field(name="late", dtype=Float32, description="Share that left more than 15 minutes late"),
        Field(name="delay", dtype=Float32, description="Mean departure delay in minutes"),
        Field(name="flights", dtype=Int64, description="Flights that left"),
    ],
    source=PipelineSource(
        Rolling(
            rows="legs",
            event="departed",
            known="departed",
            window="2h",
            every="30m",
            aggregates={
                "late": Aggregate(function="mean", column="left_late"),
                "delay": Aggregate(function="mean", column="dep_delay"),
                "flights": Aggregate(function="count"),
            },
        ),
    ),
    ttl=timedelta(hours=12),
    description="What left the origin in the last two hours",
)


def landings(name: str, entities: list[Entity], window: str, every: str, description: str) -> FeatureView:
    """Return a view of the delays of the flights that landed within `window`."""
    pipeline = Rolling(rows="legs", event="landed", known="landed", window=window, every=every, aggregates=DELAYS)
    return FeatureView(
        name=name,
        entities=entities,
        schema=DELAY_FIELDS,
        source=PipelineSource(pipeline),
        ttl=timedelta(days=2),
        description=description,
    )


origin_6h = landings("origin_6h", [origin], "6h", "30m", "Flights from the origin that landed in the last six hours")
carrier_24h = landings("carrier_24h", [carrier, origin], "24h", "1h", "The carrier's flights from the origin, a day")
route_24h = landings("route_24h", [origin, destination], "24h", "3h", "Flights of the route that landed within a day")

at_departure = FeatureService(
    name="at_departure",
    features=[sky, craft, departures_2h, origin_6h, carrier_24h, route_24h],
    description="All that is known an hour before the scheduled departure",
)

# What is predicted: one row a scheduled flight.

departures = Observations(
    name="departures",
    rows="legs",
    id="flight_id",
    at="predicted_at",
    keys={"origin": "origin", "carrier": "carrier", "dest": "dest", "tailnum": "tailnum"},
    inputs=["carrier", "origin", "dest", "distance", "hour", "weekday", "departure_minute", "arrival_minute"],
    label="late",
    label_known="landed",
    description="Does the flight arrive more than 15 minutes late?",
)

late = Label(
    name="late",
    rows="legs",
    id="flight_id",
    value="late",
    known="landed",
    owner="flights team",
    description="Did the flight arrive more than 15 minutes late? Cancelled and diverted flights have no label.",
)
