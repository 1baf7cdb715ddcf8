"""Define what a run directory holds: the contract between the stages.

Enters: mask logits, class scores and index rows of images. Leaves: parts (a Zarr zip and a Parquet file each), read
back as `ProposalRecord`. Start with `proposals`; `run` is a stage's identity, `parts` its files, `mask_codec` the
compression of masks.
"""
