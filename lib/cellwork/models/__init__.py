"""Registered models: made by `registry.register`, fetched and checked by `package`, run by `sandbox`."""
