"""Scheduled notebooks: the file beside a notebook that says when it runs and with what."""
