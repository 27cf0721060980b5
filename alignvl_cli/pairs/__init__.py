"""DATASET: images with their captions, from the user's manifest or the built-in demo, and their splits.

Read `dataset.py` first: its tables say what can be opened. `items.py` is what comes out, `tables.py`
reads rows of each file format, `manifest.py` makes items of rows, `demo.py` is the data shipped with
the package, `splits.py` sends each image to train, val or test.
"""
