"""Launchers: where the units of a study run."""
