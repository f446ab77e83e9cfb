"""The models: the visual-prefix network, loading and quantization of any model, the catalogue and the hub.

Nothing is imported here, so that `catalogue` and `hub` work without torch.
"""
