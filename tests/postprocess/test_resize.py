from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vitp_pipeline.postprocess.resize import LerpRows, lerp, resize_band, resize_patches

length = st.integers(1, 40)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(length, length, length, length, st.data())
def test_any_part_equals_the_whole(h, w, height, width, data):
    planes = torch.randn(2, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(h * w))
    whole = F.interpolate(planes[None], (height, width), mode="bilinear")[0]
    top = data.draw(st.integers(0, height - 1))
    bottom = data.draw(st.integers(top + 1, height))
    left = data.draw(st.integers(0, width - 1))
    right = data.draw(st.integers(left + 1, width))

    rows, cols = lerp(h, height), lerp(w, width)
    r0, r1 = rows.source(top, bottom)
    c0, c1 = cols.source(left, right)
    band = resize_band(planes[:, r0:r1], r0, rows, top, bottom, width)
    torch.testing.assert_close(band, whole[:, top:bottom])
    read = [
        LerpRows(
            *(
                np.stack([values, values])
                for values in (own.low[part] - first, own.high[part] - first, own.weight[part])
            )
        )
        for own, first, part in ((rows, r0, slice(top, bottom)), (cols, c0, slice(left, right)))
    ]
    parts = resize_patches(planes[:, r0:r1, c0:c1].numpy(), *read)
    np.testing.assert_allclose(parts, whole[:, top:bottom, left:right], atol=1e-12)


def test_an_unchanged_axis_reads_itself():
    same = lerp(7, 7)
    assert (same.low == np.arange(7)).all() and (same.high == same.low).all() and (same.weight == 0).all()
