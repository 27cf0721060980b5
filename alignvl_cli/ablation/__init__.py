"""STUDIES: arms x seeds, each a run of its own, and the statistics that settle what they show."""
