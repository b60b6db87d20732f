"""Probe: two-way behaviour items, read as log-odds at the answer slot."""
