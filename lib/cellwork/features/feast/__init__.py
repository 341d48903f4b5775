"""Cellwork as a plugin of Feast: the data source that carries a pipeline. Loads Feast, so only definitions import it."""

from cellwork.features.feast.source import PipelineSource

__all__ = ["PipelineSource"]
