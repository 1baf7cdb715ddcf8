"""Run both stages on images of one's own, without a run directory or ground truth.

Enters: photographs. Leaves: label maps, segments, instances, overlays. Start with `predictor`.
"""
