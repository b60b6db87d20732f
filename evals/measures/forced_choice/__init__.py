"""The forced choice over seven moral foundations."""
