"""Adapt frozen mask generators of other libraries.

Enters: an RGB image. Leaves: mask logits, class logits and the view's geometry. Start with `base` (the interface) and
`registry` (how a recipe names one); `openmmlab/`, `huggingface/` are adapters, `ops/` plain-torch operators.
"""
