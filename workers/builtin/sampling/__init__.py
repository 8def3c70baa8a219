"""How the built-in engine chooses tokens."""
