"""Datasets: images with their captions, from the user's data or the built-in demo, and their splits.

`formats.py` tells which reader opens what; `dataset.py` is what every reader gives. Rows are read by `tables.py`, put
together by `grouping.py` (manifests, `huggingface.py`), files by `annotations.py`, sidecars by `folders.py` and
`webdataset.py`. `splits.py` sends each image to train, val or test; `check.py` finds duplicates and broken files.
"""
