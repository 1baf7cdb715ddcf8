"""Masks for the tools that people label with: CVAT and Label Studio.

Enters: results of an image. Leaves: files that those tools import. Start with `results`; what comes back from them is a
label kind of the manifest, `datasets.label_kinds.label_studio`.
"""
