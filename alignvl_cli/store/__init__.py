"""The embedding store: latents of two frozen encoders with the rows they belong to, in one HDF5 file.

`schema` says what the file holds and how it is digested, `writer` makes one whole or not at all, `reader` opens and
checks one, `joined` reads several as one, `exchange` imports and exports latents in the layouts of other programs.
"""
