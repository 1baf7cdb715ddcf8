"""Maps of large images from binary masks: pixels that lie in the same masks are scored together.

Enters: masks of few distinct values, one at a time. Leaves: groups of pixels, and the masks' values in each group, from
which the functions of the package above make maps. Start with `pixel_groups`.
"""
