"""The network (vision tower, projectors, 4-bit text model), how it is loaded, and what it needs of memory.

Nothing is imported here, so that the modules without torch (`catalogue`, `checkpoint`, `memory_fit`) stay
free of it.
"""
