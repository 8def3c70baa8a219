"""What vLLM can do with a model: over how many devices it splits one, and which quantised weights it reads."""
