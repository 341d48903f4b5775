"""Mergeable sketches of tables: a batch is read once, when it comes; everything asked later is answered by merging.

`of` a frame, `merge` many, `pack` and `unpack` to keep them. Merging is commutative and associative: counts, extremes and
distinct hashes exactly, moments up to rounding, ranks within the `error` that each summary carries. A sketch holds
values of the data (extremes, quantiles, frequent texts): whoever may not read a column may not read its sketch. Nothing of the
library imports this package at its own import, as it loads NumPy.
"""

from cellwork.data.sketches.column import Column, Kind
from cellwork.data.sketches.counts import Counts
from cellwork.data.sketches.distinct import Distinct
from cellwork.data.sketches.packing import pack, unpack
from cellwork.data.sketches.ranks import Ranks
from cellwork.data.sketches.table import Sketch, merge, of

__all__ = ["Column", "Counts", "Distinct", "Kind", "Ranks", "Sketch", "merge", "of", "pack", "unpack"]
