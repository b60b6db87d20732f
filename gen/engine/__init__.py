"""vLLM with a steering patch: the only folder that imports vllm."""
