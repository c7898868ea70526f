"""The cost of an attack: seconds, work and memory, beside their controls and PyTorch."""
