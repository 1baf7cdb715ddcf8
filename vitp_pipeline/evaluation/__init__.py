"""Measure a run: counts per image, their sums, figures and notes on them.

Enters: stored proposals, point logits and ground truth. Leaves: rows of counts (Parquet) and result.json. Start with
`definition` (what an evaluation is); `image_counts` measures an image, `totals` adds up, `summary` makes figures.
"""
