"""Measurements of the project beside the published recipe and its peers; each module is a command."""
