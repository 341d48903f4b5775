"""Where the server of a published dashboard keeps what it showed: with the platform service, so that it outlives the server (`views`)."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from cellwork import errors
from cellwork.client import Client
from cellwork.wire.dashboards import Published

log = logging.getLogger("cellwork")


class Kept:
    """The store of `last_good` for the edition `about`; `client` is its owner's."""

    def __init__(self, client: Client, about: Published) -> None:
        self.client, self.about = client, about

    async def keep(self, asked: str, page: bytes) -> None:
        try:
            await asyncio.to_thread(self.client.dashboards.keep_view, self.about, asked, page)
        except errors.CellworkError as error:
            log.warning("what %s showed is not kept: %s", asked, error)

    async def find(self, asked: str) -> tuple[bytes, datetime] | None:
        try:
            return await asyncio.to_thread(self.client.dashboards.view, self.about, asked)
        except errors.NotFound:
            return None
        except errors.CellworkError as error:
            log.warning("what %s showed last is not known: %s", asked, error)
            return None
