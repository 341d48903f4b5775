"""A platform service with its pipeline worker, as a process of its own that can be killed: `python feature_process.py HOME`."""

from __future__ import annotations

import sys
from pathlib import Path

from feature_world import new_state, service

from cellwork_hub.platform.feature_worker import Worker


def main() -> None:
    state = new_state(Path(sys.argv[1]))
    worker = Worker(state)
    worker.start()
    with service(state) as client:
        print(client.connection.url, flush=True)
        sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main()
