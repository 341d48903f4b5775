"""What an engine's refusal or silence means, in a sentence with a way out. The texts of engines are not an interface: what is not known is quoted."""

from __future__ import annotations

import re
from typing import Any

from cellwork.errors import CellworkError, Conflict, NotFound, Unavailable
from cellwork_hub.containers import engine
from cellwork_hub.profiles import Profile

MAKE_ROOM = "docker builder prune, docker container prune"
"""Not `docker system prune`: it takes the network of a platform without servers, and images that jobs name by digest."""
LINES = 6
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def explain(error: Any, profile: Profile, image: str) -> CellworkError:
    """Return our error for the engine's answer `error` (docker's APIError) to the start of a container of `profile`."""
    text = str(error.explanation or error)
    if "could not select device driver" in text or "nvidia" in text.lower() or "cdi device" in text.lower():
        return Unavailable(
            "profile", profile.name, f"asks for {profile.gpus} GPU, and the container engine has none to give",
            "choose another profile; an admin installs the driver and NVIDIA's container toolkit",
        )  # fmt: skip
    if "executable file not found" in text or "no such file or directory: unknown" in text:
        return Unavailable(
            "image",
            image,
            "is broken: it has no command cellwork-server",
            "an admin builds it again, FROM cellwork/base",
        )
    if "no space left on device" in text.lower():
        return Unavailable("container engine", "", "has no space left on its disk", f"an admin makes room: {MAKE_ROOM}")
    if "No such image" in text:
        return NotFound("image", image, "is not here any more", "an admin builds it: cellwork image build")
    if "is already in use by container" in text or error.status_code == 409:
        return Conflict("server", "", "of this name is still being stopped", "try again in some seconds")
    return Unavailable(
        "container engine", "", f"refuses the container: {text[:300]}", "an admin looks at: cellwork doctor"
    )


def away(address: str, error: Exception) -> CellworkError:
    """Return our error for an engine at `address` that does not answer: who starts a server can't mend that."""
    late = "timed out" in str(error)
    verdict = "does not answer in time" if late else engine.reason(address, error).verdict
    return Unavailable("container engine", "", verdict, "try again in a minute; an admin looks at: cellwork doctor")


def last_words(log: bytes) -> str:
    """Return the last lines of a log, for a message."""
    lines = [ANSI.sub("", line).strip() for line in log.decode(errors="replace").splitlines()]
    return " | ".join(line for line in lines[-LINES:] if line) or "none"
