"""A run: the folder that it writes to, its attacks and their scores, kept so that none is lost."""
