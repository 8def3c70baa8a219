"""From what a user asks for and an axis to edits of the residual stream."""
