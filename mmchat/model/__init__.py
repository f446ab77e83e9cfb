"""The visual-prefix model: vision tower, projector, 4-bit text model, prompt.

Nothing is imported here, so that the torch-free parts (`catalogue`, `adapters`)
stay free of torch.
"""
