"""Provide operators and backbones in plain torch where no compiled ones are installed.

`deformable_attention` and `dcnv3` are sums of the samples that `bilinear` takes; the backbone `internimage` is made of
`dcnv3`, and `dinat` of `neighborhood_attention`. Start with `bilinear`.
"""
