"""Algorithm 1 and what carries it to many images; it knows no network, no dataset and no task."""
