"""How much memory a model takes, and whether it fits on this machine; everything here works without torch."""
