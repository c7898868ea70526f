"""What an attack costs: seconds, work and memory, beside their controls and PyTorch."""
