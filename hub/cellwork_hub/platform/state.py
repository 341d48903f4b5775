"""What the routers of the platform service share. One process, one database, one owner of every table under data/."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, Engine

from cellwork import files
from cellwork.data.location import Location, address
from cellwork.errors import BadInput
from cellwork.home import Home
from cellwork.wire.batches import Batch
from cellwork_hub.context import Context
from cellwork_hub.platform.outcome_store import OutcomeStore


@dataclass(frozen=True)
class State:
    engine: Engine
    home: Home
    context: Context
    on_batch: tuple[Callable[[Connection, State, Batch], None], ...] = ()
    """What is called in the transaction that makes a new batch known, so that nothing which follows from it is forgotten."""

    @functools.cached_property
    def outcomes(self) -> OutcomeStore:
        """Opened when it is first asked for."""
        return OutcomeStore(self.home.outcomes())

    @functools.cached_property
    def _raw(self) -> Location | None:
        """Where raw tables lie if not under home."""
        settings = self.context.settings
        if not settings.raw_url:
            return None
        options = {}
        if settings.raw_credentials:
            secret = self.home.secret(settings.raw_credentials)
            try:
                options = msgspec.json.decode(files.read_secret(secret), type=dict[str, str])
            except (OSError, msgspec.MsgspecError) as error:
                raise BadInput(
                    "raw_credentials", secret, f"is no JSON object of texts that only its owner reads: {type(error).__name__}",
                    "write e.g. {\"aws_access_key_id\": \"…\", \"aws_secret_access_key\": \"…\"} and chmod 600",
                ) from None  # fmt: skip
        return Location(address(settings.raw_url), options)

    def raw_table(self, project: str, dataset: str) -> Location:
        """Return where the raw batches of a data set lie."""
        path = self.home.raw_table(project, dataset)
        return Location(str(path)) if self._raw is None else self._raw / "raw" / path.parent.name / path.name

    def quarantine(self, project: str, dataset: str) -> Location:
        """Return where its refused rows lie."""
        path = self.home.quarantine(project, dataset)
        return Location(str(path)) if self._raw is None else self._raw / "quarantine" / path.parent.name / path.name

    def close(self) -> None:
        self.outcomes.close()
        self.engine.dispose()
