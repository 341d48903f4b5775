"""Whoever asks for a published page again and again does not fill its server with kernels: real kernels, started and ended."""

from __future__ import annotations

import asyncio

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

from cellwork_hub.page_kernels import WAITING, PageKernel


def test_of_kernels_that_nobody_connected_to_the_newest_stay_and_a_viewers_own_too() -> None:
    async def ask() -> tuple[list[str], list[str]]:
        kernels = AsyncMappingKernelManager()
        kernels.kernel_manager_class = f"{PageKernel.__module__}.{PageKernel.__name__}"
        try:
            viewed = await kernels.start_kernel()
            kernels.notify_connect(viewed)
            started = [viewed, *[await kernels.start_kernel() for _ in range(WAITING + 3)]]
            return started, kernels.list_kernel_ids()
        finally:
            await kernels.shutdown_all(now=True)

    started, left = asyncio.run(asyncio.wait_for(ask(), 240))
    assert left == [started[0], *started[-WAITING - 1 :]]
