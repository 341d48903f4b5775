"""Runners: they claim runs over HTTP and execute them with nothing but their own token and the run's."""
