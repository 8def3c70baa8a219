"""The engine inside vLLM: vLLM generates, and its workers pool the activations while it does."""
