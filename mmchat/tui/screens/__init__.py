"""The screens: they lay out, route keys and messages, and know no engine."""
