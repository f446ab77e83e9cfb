"""The process that holds the model: service, decode loop, caches.

Nothing is imported here: `python -m mmchat.engine` takes its lock before it
pays for any library.
"""
