"""Retention: how far a condition is from the base on frozen neutral text."""
