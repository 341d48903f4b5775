"""Where a Delta table lies: a folder of this machine, or an address of an object store (``s3://``, ``gs://``, ``az://``).

What opens an object store is given by reference: the setting `raw_credentials` names a file of ``secrets/`` (a JSON object of the
store's options); an address with a credential in it is refused, and options are in no repr. On an object store a commit of a table is a put that
succeeds only if nobody else made that version (``If-None-Match: *``), so that two writers never lose each other's commits; a store without
it must not be used by two. It keeps what it has answered. On a file system a commit is a rename, and `settle` hands the files of
a batch and the commit to the disk before the database makes the batch known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cellwork import files
from cellwork.errors import BadInput, Unavailable

if TYPE_CHECKING:
    import polars as pl
    from deltalake import DeltaTable

PATIENCE = {"timeout": "60s", "connect_timeout": "5s", "max_retries": "4", "retry_timeout": "20s"}
"""How long a store's client tries, unless the options say otherwise."""
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "file")


@dataclass(frozen=True)
class Location:
    uri: str
    """A path, or an address."""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path | None:
        """Return the folder it is on this machine, if it is one."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def client(self) -> dict[str, str] | None:
        """Return the options of the store's client; none for a folder."""
        return None if self.folder is not None else {**PATIENCE, **self.options}

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.uri.rstrip('/')}/{name}", self.options)

    def exists(self) -> bool:
        """Whether a table lies here. Raises Unavailable if the store does not answer."""
        from deltalake import DeltaTable

        with answering(self):
            return DeltaTable.is_deltatable(self.uri, storage_options=self.client)

    def table(self) -> DeltaTable:
        """Return the table as it is now."""
        from deltalake import DeltaTable

        with answering(self):
            return DeltaTable(self.uri, storage_options=self.client)

    def scan(self) -> pl.LazyFrame:
        """Return the rows of the table as it is now, unread."""
        import polars as pl
        from deltalake import DeltaTable

        with answering(self):  # polars knows retries by other names than Delta's client
            own = {name: value for name, value in (self.client or {}).items() if "retr" not in name}
            return pl.scan_delta(DeltaTable(self.uri, storage_options=own or None))

    def settle(self, batch: str) -> None:
        """Return when the files of `batch`, the newest commit and the newest checkpoint are on the disk."""
        if self.folder is None:
            return
        folder, log = self.folder / f"_batch={batch}", self.folder / "_delta_log"
        newest = [max(log.glob(kind), default=log) for kind in ("*.json", "*.checkpoint.parquet")]
        for path in [*folder.glob("*.parquet"), *newest, log / "_last_checkpoint", folder, log, self.folder]:
            if path.exists():
                files.sync(path)


@contextmanager
def answering(place: Location) -> Iterator[None]:
    """Turn what is raised when a store does not answer or refuses us, or a table or file of it has vanished, into Unavailable."""
    import polars as pl
    from deltalake.exceptions import TableNotFoundError

    try:
        yield
    except (OSError, TableNotFoundError, pl.exceptions.ComputeError) as error:
        if isinstance(error, FileNotFoundError | TableNotFoundError):
            raise Unavailable(
                "table", place.uri, f"has lost what it is made of: {str(error).splitlines()[0][:300]}",
                "bring it back from a backup of the platform's folder",
            ) from None  # fmt: skip
        if place.folder is not None:
            raise
        raise Unavailable(
            "raw store", place.uri, f"does not answer: {str(error).splitlines()[0][:300]}",
            "start it, or look at the settings raw_url and raw_credentials",
        ) from None  # fmt: skip


def at(place: Path | Location) -> Location:
    return place if isinstance(place, Location) else Location(str(place))


def address(url: str) -> str:
    """Return `url` if tables can lie there.

    Raises
    ------
    BadInput
        It is no address of a store, or a credential stands in it.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme == "file"):
        raise BadInput(
            "raw_url", url, "is no address of a store", f"write e.g. s3://bucket/folder ({', '.join(SCHEMES)})"
        )
    if parts.username or parts.password or parts.query:
        raise BadInput(
            "raw_url", f"{parts.scheme}://…", "holds a credential or options",
            "put them into a file of secrets/ and name it in raw_credentials",
        )  # fmt: skip
    return url.removeprefix("file://") if parts.scheme == "file" else url.rstrip("/")
