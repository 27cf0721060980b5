"""Frozen encoders: pictures and captions in, latents out, through transformers' own classes.

`vision.load_vision` and `text.load_text` give the two towers; `images.decode_image` turns bytes into
a picture; `records` says what decides a latent; `bundled` holds the pair that works offline.
"""
