"""The forced choice in other harnesses: Inspect, lm-evaluation-harness, Hugging Face."""
