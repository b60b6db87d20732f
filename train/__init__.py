"""Distil kept completions into a LoRA behind a divergence barrier, over a gated history of finished rounds."""
