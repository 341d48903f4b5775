"""The environment that Lab's "Create Notebook Job" offers: where this server runs is where its notebooks' runs execute."""

from __future__ import annotations

import os
import platform

from jupyter_scheduler.environments import EnvironmentManager
from jupyter_scheduler.models import RuntimeEnvironment

NAME = "cellwork"


class CellworkEnvironments(EnvironmentManager):  # type: ignore[misc]
    def list_environments(self) -> list[RuntimeEnvironment]:
        image = os.environ.get("CELLWORK_IMAGE_DIGEST", "")
        where = f"the image {image.removeprefix('sha256:')[:12]}" if image else f"Python {platform.python_version()}"
        return [
            RuntimeEnvironment(
                name=NAME, label="Cellwork", description=f"Runs of the platform's jobs service, in {where}",
                file_extensions=["ipynb"], output_formats=["ipynb", "html"], metadata={"path": image}, compute_types=None, utc_only=False,
            )
        ]  # fmt: skip

    def manage_environments_command(self) -> str:
        return ""

    def output_formats_mapping(self) -> dict[str, str]:
        return {"ipynb": "Notebook", "html": "HTML"}
