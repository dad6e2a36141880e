"""Checkpoints: training as an asset, and the model card."""
