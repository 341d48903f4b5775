"""Containers: the engine that answers, the images that are made for it, and what is left of ours in it."""
