"""What the routers of the platform service share. One process, one database, one owner of every table under data/."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from cellwork.home import Home
from cellwork_hub.context import Context


@dataclass(frozen=True)
class State:
    engine: Engine
    home: Home
    context: Context
