"""Extract a steering vector, sample a sweep of coefficients with vLLM, filter the completions."""
