"""Use the features of a frozen backbone instead of its images.

Enters: images. Leaves: what points read of them, computed or stored. Start with `patch_features`; `source` reads the
stored ones.
"""
