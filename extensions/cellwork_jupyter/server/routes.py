"""What a page asks this server for: the kept outputs of a kernel."""

from __future__ import annotations

import json

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado.web import HTTPError, authenticated

from cellwork_jupyter.server.connection import kept_of


class Outputs(APIHandler):  # type: ignore[misc]
    auth_resource = "kernels"

    @authenticated  # type: ignore[untyped-decorator]
    @authorized  # type: ignore[untyped-decorator]
    async def get(self, kernel: str) -> None:
        """Answer with the newest execution of each cell of the kernel, oldest first."""
        if kernel not in self.kernel_manager:
            raise HTTPError(404, f"kernel {kernel!r} is not here any more")
        kept = kept_of(self.kernel_manager.get_kernel(kernel))
        self.finish(json.dumps([execution.as_json() for execution in kept.executions.values()]))
