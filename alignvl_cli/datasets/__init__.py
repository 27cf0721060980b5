"""DATASET: images with their captions, from the user's data or the built-in demo, and their splits.

Read `dataset.py` first: its table says what can be opened, and `detection.py` how a format is told.
`items.py` is what comes out, and `listing.py` the last step of every reader.

Rows: `tables.py` reads them from manifests, `grouping.py` and `manifest.py` make items of them;
`huggingface.py` and `arrow.py` do so for Hugging Face datasets. Whole files: `annotations.py` (Karpathy,
COCO), `flickr.py`. Sidecars: `folder.py`, `webdataset.py`, both through `sidecars.py`.
`captions.py` cleans text, `demo.py` is the data shipped with the package, `splits.py` sends each image
to train, val or test.
"""
