"""The job spec: its sections, where it is stored, and which key it may send to which server."""
