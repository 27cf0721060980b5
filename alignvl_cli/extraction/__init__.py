"""From a dataset and two encoders to a store: shards of latents that survive a crash, then one file.

Reading order follows the data: `run` (the stages), `plan` (what is extracted, and whether it is the same again),
`sources` (a picture file is read and decoded), `images`, `texts` and `encoding` (latents), `shards` (STORE.partial).
`up_to_date` compares a store with its pictures, `verify` checks its latents, `estimate` times an extraction beforehand.
"""
