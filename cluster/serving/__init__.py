"""A model that answers people while they wait: an OpenAI-compatible server, and a conversation on the terminal."""
