from hypothesis import given
from hypothesis import strategies as st

from protocaffe.layers.windows import window_offsets


@given(
    image=st.integers(1, 9),
    grid=st.integers(1, 9),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    pad=st.integers(0, 4),
    dilation=st.integers(1, 3),
)
def test_the_slices_meet_every_pixel_of_every_window_once(
    image, grid, kernel, stride, pad, dilation
):
    met = {
        (offset.element, p, q)
        for offset in window_offsets(image, grid, kernel, stride, pad, dilation)
        for p, q in zip(range(grid)[offset.grid], range(image)[offset.image], strict=True)
    }
    assert met == {
        (k, p, p * stride + k * dilation - pad)
        for k in range(kernel)
        for p in range(grid)
        if 0 <= p * stride + k * dilation - pad < image
    }
