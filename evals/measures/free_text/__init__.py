"""Free generations on held-out prompts, scored under the original model."""
