"""From what an author has to what is stored of it: sources, deliveries, quarantine. No service is needed for these."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import random
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.data import delivery, quarantine, sources
from cellwork.errors import BadInput, NotFound, TooLarge
from cellwork.wire.batches import Column, RawDataset, Seal

CSV = "code,at,local,day,n,x,flag\n007,2013-01-01T05:00:00-05:00,2013-01-01 05:00,2013-01-01,1,NA,true\n010,2013-01-01T11:30Z,2013-01-01 06:30,2013-01-02,,0.5,false\n"
PLAIN = RawDataset(name="flights")


def received(
    frame: pl.DataFrame, declared: RawDataset = PLAIN, partition: str = "2013-01", pinned: list[Column] | None = None
) -> Any:
    return delivery.receive(frame, "demo", declared, partition, pinned or [])


# Sources


def test_a_csv_gives_numbers_dates_and_times_with_a_zone_and_keeps_the_rest_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    frame = sources.read(tmp_path / "a.csv", nulls=["", "NA"], known={"code": "string"})
    assert frame.rows() == [
        ("007", datetime(2013, 1, 1, 10, tzinfo=UTC), "2013-01-01 05:00", date(2013, 1, 1), 1, None, True),
        ("010", datetime(2013, 1, 1, 11, 30, tzinfo=UTC), "2013-01-01 06:30", date(2013, 1, 2), None, 0.5, False),
    ]


def test_a_column_known_as_text_stays_text_whatever_it_looks_like(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    known = {"at": "string", "day": "string", "n": "double", "gone": "string"}
    frame = sources.read(str(tmp_path / "a.csv"), nulls=["", "NA"], known=known)
    assert frame["at"].to_list() == ["2013-01-01T05:00:00-05:00", "2013-01-01T11:30Z"]
    assert frame.schema["day"] == pl.String
    assert frame.schema["n"] == pl.Float64
    assert frame["code"].to_list() == [7, 10]


def test_a_type_is_recognised_over_the_whole_file_not_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,day\n" + "1,2013-01-01\n" * 5000 + "0.5,soon\n")
    frame = sources.read(tmp_path / "a.csv")
    assert frame["x"][-1] == 0.5
    assert frame["day"][-1] == "soon"


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inner.csv", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.csv", bytes),
        ("a.csv.gz", gzip.compress),
        ("A.CSV.BZ2", bz2.compress),
        ("a.csv.zst", lambda data: bytes(pa.compress(data, "zstd", asbytes=True))),
        ("a.csv.zip", zipped),
        ("a.zip", zipped),
    ],
)
def test_a_compressed_file_reads_like_the_plain_one(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(b"a,b\n1,x\n2,y\n"))
    assert sources.read(tmp_path / name).rows() == [(1, "x"), (2, "y")]


def test_other_formats_and_pandas_read_as_the_same_frame(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, None], "t": [datetime(2013, 1, 1, tzinfo=UTC)] * 2})
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(
        '{"a": 1, "t": "2013-01-01T00:00:00Z"}\n{"a": null, "t": "2013-01-01T01:00:00+01:00"}\n'
    )
    (tmp_path / "a.tsv").write_text("a\tt\n1\t2013-01-01 00:00:00Z\n\t2013-01-01T00:00:00.0+00:00\n")
    every, pinned = (frame, frame.to_pandas(), *sorted(tmp_path.iterdir())), received(frame).columns
    ids_seen = {received(sources.read(source), pinned=pinned).batch for source in every}
    assert len(ids_seen) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b" \n", "is empty"),
        ("a.xls", b"x", "does not tell its format"),
        ("a.csv.gz", b"not gzip at all", "can't be unpacked"),
        ("a.csv.zip", b"not zip at all", "zip file"),
        ("a.jsonl", b'{"a": 1}\n{"a": ', "can't be read as jsonl"),
        ("a.parquet", b"PAR1 but not more", "not a readable parquet"),
        ("a.csv", b"a,b\n1,2,3\n", "can't be read as csv"),
    ],
)
def test_a_broken_file_is_refused_with_its_name_or_fault(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=words):
        sources.read(tmp_path / name)


def test_a_zip_of_two_files_a_missing_file_and_a_number_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1")
        archive.writestr("b.csv", "a\n1")
    with pytest.raises(BadInput, match="holds 2 files"):
        sources.read(tmp_path / "a.zip")
    with pytest.raises(NotFound, match="does not exist"):
        sources.read(tmp_path / "gone.csv")
    with pytest.raises(BadInput, match="int"):
        sources.read(7)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="mixed types"):
        sources.read(pd.DataFrame({"a": [1, "x", object()]}))


def test_json_lines_with_columns_of_their_own_are_refused_before_every_row_gets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = b"".join(b'{"k%d":"%d"}\n' % (i, i) for i in range(200))
    assert sources.text(lines, "jsonl").shape == (200, 200)
    monkeypatch.setattr(delivery, "MOST_CELLS", 39_999)
    with pytest.raises(TooLarge, match=r"200 lines.* of all 200 columns are more than 39,999 values"):
        sources.text(lines, "jsonl")
    monkeypatch.setattr(sources, "MOST_COLUMNS", 199)
    with pytest.raises(TooLarge, match=r"200 columns.* are more than 199"):
        sources.text(lines, "jsonl")


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_empty_lines_under_many_columns_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = ("," if kind == "csv" else "\t").join(f"c{i}" for i in range(100)).encode() + b"\n" * 101
    assert sources.text(body, kind).shape == (100, 100)
    monkeypatch.setattr(delivery, "MOST_CELLS", 10_000)
    with pytest.raises(TooLarge, match="send it in parts"):
        sources.text(body, kind)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": [{"k1": 1}, {"k2": 1}]}', "column 'a': is a list in line 3, which raw data does not keep; explode"),
        (b'{"a": 1, "b": {"k": 1}}', "column 'b': is a struct in line 3, which raw data does not keep; unnest"),
        (b'{"a": "\\ud800"}', "can't be read as jsonl: line 3"),
        (b"7", "can't be read as jsonl: line 3"),
    ],
)
def test_a_line_of_json_that_is_no_flat_row_is_refused_with_its_number(line: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        sources.text(b'{"a": "[{"}\n\n' + line + b"\n", "jsonl")


# Bytes of a delivery


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bytes_damaged_anywhere_are_read_or_refused_but_never_crash(data: st.DataObject) -> None:
    body = bytearray(parquet(pl.DataFrame({"a": list(range(50)), "t": ["some text"] * 50})))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    with contextlib.suppress(BadInput, TooLarge):
        assert delivery.unpack(bytes(body[:cut]) if data.draw(st.booleans()) else bytes(body)).width


@pytest.mark.parametrize("damaged", ["name", "text"])
def test_bytes_that_are_no_text_where_text_belongs_are_refused(damaged: str) -> None:
    buffer = io.BytesIO()
    pl.DataFrame({"name": ["text"]}).write_parquet(buffer, compression="uncompressed")
    body = buffer.getvalue().replace(damaged.encode(), b"\xff" * 4)
    with pytest.raises(BadInput, match="not a readable parquet file"):
        delivery.unpack(body)


def test_damaged_notes_of_the_writer_do_not_matter() -> None:
    body = parquet(pl.DataFrame({"a": [1]})).replace(b"ARROW:schema", b"\xffRROW:schema")
    assert delivery.unpack(body).to_dict(as_series=False) == {"a": [1]}


def test_a_small_file_that_unpacks_to_a_giant_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    body = parquet(pl.select(a=pl.repeat(0, 100_000), b=pl.repeat("x", 100_000)))
    assert len(body) < 10_000
    monkeypatch.setattr(delivery, "MOST_CELLS", 200_000)
    assert delivery.unpack(body).height == 100_000
    monkeypatch.setattr(delivery, "MOST_CELLS", 199_999)
    with pytest.raises(TooLarge, match="send it in parts"):
        delivery.unpack(body)


LONG = ["x" * 10_000] * 250


@pytest.mark.parametrize(
    "values",
    [
        pa.array(LONG),
        pa.array(LONG, pa.large_string()),
        pa.array(LONG).dictionary_encode(),
        pa.array(LONG, pa.binary(10_000)),
        pa.array(LONG, pa.large_binary()),
        pa.array([LONG[:25]] * 10),
        pa.array([{"a": [{"b": text}]} for text in LONG]),
        pa.array([[("k", text)] for text in LONG], pa.map_(pa.string(), pa.string())),
    ],
    ids=lambda values: str(values.type)[:20],
)
def test_a_text_that_stands_in_many_rows_is_counted_before_it_is_written_out(
    values: pa.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"long": values}), buffer, compression="zstd", store_schema=False)
    assert len(buffer.getvalue()) < 25_000
    monkeypatch.setattr(delivery, "MOST_BYTES", 2_500_250)
    assert delivery.unpack(buffer.getvalue(), "rows").height == len(values)
    monkeypatch.setattr(delivery, "MOST_BYTES", 2_499_999)
    with pytest.raises(TooLarge, match=r"^rows .*over the limit of 2499999; send it in parts"):
        delivery.unpack(buffer.getvalue(), "rows")


def test_values_in_lists_count_each(monkeypatch: pytest.MonkeyPatch) -> None:
    body = parquet(pl.DataFrame({"many": [[0] * 10_000] * 3}))
    monkeypatch.setattr(delivery, "MOST_CELLS", 30_000)
    assert delivery.unpack(body).height == 3
    monkeypatch.setattr(delivery, "MOST_CELLS", 29_999)
    with pytest.raises(TooLarge, match="30000 values"):
        delivery.unpack(body)


def test_what_is_unpacked_has_the_types_it_was_written_with() -> None:
    frame = pl.DataFrame(
        {
            "text": ["a", None], "bytes": [b"a", None], "category": pl.Series(["a", None], dtype=pl.Categorical),
            "kind": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])), "texts": [["a", "b"], None], "of": [{"a": "x", "b": 1}, None],
            "three": pl.Series([["a"] * 3] * 2, dtype=pl.Array(pl.String, 3)), "money": pl.Series(["1.5", None]).cast(pl.Decimal(30, 2)),
            "categories": pl.Series([["a"], []], dtype=pl.List(pl.Categorical)), "none": [None, None], "day": [date(2013, 1, 1), None],
        }
    )  # fmt: skip
    assert delivery.unpack(parquet(frame)).equals(frame)
    assert delivery.unpack(parquet(frame)).schema == frame.schema
    assert delivery.unpack(parquet(frame.clear())).schema == frame.schema


def test_two_columns_of_one_name_are_refused() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]), buffer)
    with pytest.raises(BadInput, match="a name of its own"):
        delivery.unpack(buffer.getvalue())


@pytest.mark.parametrize("key", ["2013-01", "a", "A.b_c-9", "x" * 64])
def test_a_partition_key_is_kept_as_it_is(key: str) -> None:
    assert delivery.partition_key(key) == key


@pytest.mark.parametrize("key", ["", ".", "..", "-a", "a/b", "a b", "x" * 65, "a\n", "é"])
def test_what_is_no_partition_key_is_refused(key: str) -> None:
    with pytest.raises(BadInput, match="partition key"):
        delivery.partition_key(key)


# Deliveries


def test_the_order_of_rows_and_columns_does_not_change_the_batch_and_two_equal_days_are_two() -> None:
    frame = pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    assert received(frame).batch == received(frame.select("b", "a").reverse()).batch
    assert received(frame).batch != received(frame, partition="2013-02").batch
    assert received(frame).batch != received(frame, RawDataset(name="other")).batch


def test_the_same_numbers_from_pandas_with_gaps_are_the_same_batch() -> None:
    """pandas makes floats of whole numbers with a gap; the pinned schema makes them whole again."""
    whole = pl.DataFrame({"a": [1, None, 3]})
    first = received(whole)
    again = received(pl.from_pandas(pd.DataFrame({"a": [1.0, None, 3.0]})), pinned=first.columns)
    assert again.batch == first.batch
    assert again.readable["a"].to_list() == [1, None, 3]


def test_sealed_values_are_in_no_readable_row_no_statistics_and_no_quarantine() -> None:
    declared = RawDataset(
        name="flights", key=["id"], seals=[Seal(holdout="november", partitions=["2013-11"], columns=["delay"])]
    )
    frame = pl.DataFrame({"id": [1, 2, None], "delay": [1234.5, None, 77.0]})
    open_one, closed = received(frame, declared, "2013-10"), received(frame, declared, "2013-11")
    assert open_one.readable["delay"].to_list() == [1234.5, None]
    assert closed.readable["delay"].to_list() == [None, None]
    assert closed.rejected["delay"].to_list() == [None]
    assert (closed.statistics[1].nulls, closed.statistics[1].max, closed.statistics[1].mean) == (2, None, None)
    assert closed.sealed["delay"].to_list() == [1234.5, None, 77.0]
    assert closed.columns[1].type == "double"


def test_an_empty_delivery_and_one_without_a_good_row_are_refused() -> None:
    with pytest.raises(BadInput, match="has no rows"):
        received(pl.DataFrame({"a": []}))
    with pytest.raises(BadInput, match="no row left: key column 'a' is null"):
        received(pl.DataFrame({"a": [None, None], "b": [1, 2]}), RawDataset(name="flights", key=["a"]))


# Quarantine


def judged(
    rows: list[tuple[Any, ...]], columns: list[str], key: list[str]
) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    frame = pl.DataFrame(rows, schema=columns, orient="row").with_columns(_row=pl.int_range(pl.len()))
    kept, rejected = quarantine.divide(frame, key)
    reasons = rejected.get_column("_reason").value_counts()
    return kept.drop("_row").rows(), dict(reasons.iter_rows())


def test_each_fault_of_a_row_has_its_reason() -> None:
    rows = [(1, 0.5), (None, 0.5), (2, 1.0), (2, 1.0), (3, 1.0), (3, 2.0), (4, float("inf")), (5, None)]
    kept, reasons = judged(rows, ["id", "x"], ["id"])
    assert kept == [(1, 0.5), (2, 1.0), (5, None)]
    assert reasons == {
        "key column 'id' is null": 1,
        "repeats the row of its key (id)": 1,
        "key (id) has different rows": 2,
        "column 'x' is infinite": 1,
    }


def test_without_a_key_equal_rows_are_rows() -> None:
    assert judged([(1, 0.5), (1, 0.5)], ["id", "x"], []) == ([(1, 0.5), (1, 0.5)], {})


def test_a_key_that_does_not_exist_is_refused_with_the_near_miss() -> None:
    with pytest.raises(BadInput, match="did you mean 'id'"):
        judged([(1,)], ["id"], ["idd"])


KEYED = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, None]), st.sampled_from([0.5, 1.5, None])), min_size=1, max_size=12
)


@settings(max_examples=80, deadline=None)
@given(KEYED, st.randoms(use_true_random=False))
def test_no_row_is_lost_keys_are_unique_and_the_order_does_not_matter(
    rows: list[tuple[int | None, float | None]], rng: random.Random
) -> None:
    kept, reasons = judged(list(rows), ["id", "x"], ["id"])
    assert len(kept) + sum(reasons.values()) == len(rows)
    assert len({row[0] for row in kept}) == len(kept)
    again, same = judged(rng.sample(rows, len(rows)), ["id", "x"], ["id"])
    assert (sorted(again, key=repr), same) == (sorted(kept, key=repr), reasons)
