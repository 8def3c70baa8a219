"""What a plan needs: bytes, memory, time and money, and the devices it fits."""
