"""From a dataset and two encoders to a store: shards of latents that survive a crash, then one file.

Reading order follows the data: `run` (the stages), `plan` (what is extracted, and whether it is the
same again), `work_folder` (STORE.partial), `workers` and `pictures` (decoding), `images`, `texts`,
`assembly` (the store). `check` looks a dataset over, `verify` a store; `exchange` takes latents out and in.
"""
