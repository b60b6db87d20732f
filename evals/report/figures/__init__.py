"""The figures of the report: one file each, and a line in registry.py."""
