"""A demonstration that needs no download and no GPU: drawn scenes and a small generator trained on them."""
