"""Export the pages to lib/cellwork/ui. `make docs` runs this; a test compares.

Not `nbdev-export`: it would also rewrite the library's own docstring and put an index beside it.
"""

from __future__ import annotations

from pathlib import Path

from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    for page in sorted((ROOT / "nbs" / "ui").glob("*.ipynb")):
        nb_export(page, lib_path=ROOT / "lib" / "cellwork")
