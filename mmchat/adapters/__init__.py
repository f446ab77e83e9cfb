"""Adapters: their folders, LoRA on a loaded base, switching, archives and merging."""
