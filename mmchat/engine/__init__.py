"""The process that holds the model: service, decode loop, caches.

Nothing is imported here, so that `python -m mmchat.engine` takes its lock before it imports any
library.
"""
