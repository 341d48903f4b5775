"""Models by name, with what each wants of its columns and where its parameters are worth searching.

`pipeline` makes one scikit-learn pipeline of it all: what prepares the columns, what selects among them, the model, and what
is made of its answer (calibration, a threshold, a transformed target). What explores is what serves: nothing is done to the
rows outside the pipeline. A package adds models under the entry-point group ``cellwork.models``: a name and a `Model`.
"""

from __future__ import annotations

from cellwork.training.catalogue.assemble import pipeline, space
from cellwork.training.catalogue.entries import get, listing, names
from cellwork.training.catalogue.model import Choice, Kind, Made, Model, Number, kind_of

__all__ = ["Choice", "Kind", "Made", "Model", "Number", "get", "kind_of", "listing", "names", "pipeline", "space"]
