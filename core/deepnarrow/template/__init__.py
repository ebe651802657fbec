"""Texts of a new plugin; see `newplugin.py`."""
