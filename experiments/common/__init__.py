"""What launches share: console, flags, the skeleton of a table."""
