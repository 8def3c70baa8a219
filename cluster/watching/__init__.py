"""Conversations on an axis: the model that reads them, in this process, and the monitor of a running conversation."""
