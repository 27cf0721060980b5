"""INDEX and METRICS: exact recall with its protocol, FAISS indexes, the dual encoder, and search."""
