"""Measures how often a model answers right: asks questions with known answers through the engine."""
