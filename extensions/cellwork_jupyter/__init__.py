"""What runs inside a user's Jupyter. Loading it costs nothing: no library heavier than IPython is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Called by IPython: ``%load_ext cellwork_jupyter``, or at the start of every kernel of the platform."""
    from cellwork_jupyter import kernel

    kernel.load(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    from cellwork_jupyter import kernel

    kernel.unload(shell)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Called by Jupyter Server: where its part of the package lies."""
    return [{"module": "cellwork_jupyter.server"}]
