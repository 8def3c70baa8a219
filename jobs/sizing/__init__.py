"""How much a plan takes: bytes, memory, time and money, and which device holds it."""
