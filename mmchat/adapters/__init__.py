"""Adapters: folders and cards, LoRA on a loaded base, switching, import, export and merging."""
