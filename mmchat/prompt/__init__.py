"""From the turns of a conversation to a model's inputs: chat template, tokens, pixel values."""
