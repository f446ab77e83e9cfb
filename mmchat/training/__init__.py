"""Training: a recipe and data in, a model or an adapter out."""
