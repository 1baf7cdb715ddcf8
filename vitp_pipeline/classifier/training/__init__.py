"""Train a point classifier from images with ground truth. Start with `loop`; `data` makes the batches."""
