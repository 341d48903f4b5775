"""Kernels of a published page: one a viewer, and few to which no viewer has connected.

The kernel of a page waits for the browser that asked for it, and whether that ever comes is not known before it is culled for being
idle. Whoever asks again and again would fill the server's memory with such kernels, and the page would end for
all. So of those that wait only the newest stay when another is started; as many are made at a time (`making`), so none of them ends
while its page is made.
"""

from __future__ import annotations

from typing import Any

from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

WAITING = 3
"""Kernels without a connection that stay beside one that is started."""


class PageKernel(ServerKernelManager):  # type: ignore[misc]
    async def _async_pre_start_kernel(self, **options: Any) -> Any:
        await make_room(self.parent)
        return await super()._async_pre_start_kernel(**options)


async def make_room(kernels: Any) -> None:
    """End the oldest kernels that nobody is connected to, but for `WAITING`."""
    waiting = [name for name in kernels.list_kernel_ids() if not kernels._kernel_connections.get(name)]
    for name in waiting[: max(0, len(waiting) - WAITING)]:
        if name in kernels:
            await kernels.shutdown_kernel(name, now=True)
