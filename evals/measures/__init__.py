"""Measures: what is asked of a model under every condition of a round."""
