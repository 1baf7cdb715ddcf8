"""See how a folder of images is laid out: what `vitp init` writes a manifest from.

Enters: a folder. Leaves: what `layout` holds (kind of labels, splits, classes) and a manifest's text. One module per
layout; `detect` lists them in the order in which they are asked.
"""
