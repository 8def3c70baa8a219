"""Forward passes of the built-in engine: packed or plain, what they observe, and recorded decoding steps."""
