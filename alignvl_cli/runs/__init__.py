"""A run: a trained adapter pair in a folder. `folder` names its files and loads a complete one, `writer` fills one."""
