"""Before any training: do two frozen spaces place the same pairs alike? Measures, and a plain reading of them."""
