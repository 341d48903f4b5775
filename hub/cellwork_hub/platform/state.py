"""What the routers of the platform service share. One process, one database, one owner of every table under data/."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

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

    def close(self) -> None:
        self.outcomes.close()
        self.engine.dispose()
