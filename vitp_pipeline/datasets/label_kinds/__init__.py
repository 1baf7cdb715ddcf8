"""Kinds of labels: how the ground truth of an image is listed, read and looked at. Each is a module that adds itself.

Enters: a split and one of its samples. Leaves: the ground truth, in one of the forms of `truth`. Start with `kind`.
"""
