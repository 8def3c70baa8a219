"""From messages to token ids by the model's own chat template, and back to spans of them."""
