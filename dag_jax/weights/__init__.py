"""Checkpoint files: our own in `store`, those of other frameworks in modules of their names."""
