"""Evaluation: asks a model questions with known answers through the engine, and grades them."""
