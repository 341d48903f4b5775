"""A kernel whose life hangs on its standard input: `python -m cellwork_jupyter.kernel.contained -f FILE`.

The kernel of a run in a container. Whoever started it holds the other end; when that is gone, however it went, so is the kernel.
"""

from __future__ import annotations

import os
import threading


def end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
