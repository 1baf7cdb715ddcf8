"""Turn masks and scores into points, fused scores and maps.

Enters: mask logits, class logits, point logits of one image. Leaves: points, fused class scores, semantic and panoptic
maps, instances. Pure functions on arrays; no files. Start with `fusion` and `semantic`.
"""
