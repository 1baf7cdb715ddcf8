"""Count and measure label maps, segments and instances.

Enters: maps or instances and the ground truth. Leaves: counts that add up over images, and figures made of them. Pure
functions on arrays. Start with `semantic`.
"""
