"""Demonstrate the pipeline without a download or a GPU: drawn scenes and a small generator trained on them.

Enters: a folder to write to. Leaves: a dataset, a run on it, and a picture. Start with `run`;
`scenes` draws the images, `picture` the results.
"""
