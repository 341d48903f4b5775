"""Cellwork as a plugin of Feast: data source, offline and online store, registry. Loads Feast, so only definitions and Feast import it."""

from cellwork.features.feast.offline import OfflineStore, OfflineStoreConfig
from cellwork.features.feast.online import OnlineStore, OnlineStoreConfig
from cellwork.features.feast.source import PipelineSource

__all__ = ["OfflineStore", "OfflineStoreConfig", "OnlineStore", "OnlineStoreConfig", "PipelineSource"]
