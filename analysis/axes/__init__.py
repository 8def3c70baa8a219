"""What goes with an axis: the model that it belongs to, and how long that model's activations are."""
