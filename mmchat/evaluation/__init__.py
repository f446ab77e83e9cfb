"""How often a model answers right: questions with known answers, asked through the engine."""
