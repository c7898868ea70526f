"""The launches: each file is one experiment, run as `python -m experiments.<name>`."""
