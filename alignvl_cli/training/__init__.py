"""Training: stores in, a run folder out. `run` ties the rest together and yields the records of `state`."""
