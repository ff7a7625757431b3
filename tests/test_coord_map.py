import numpy as np
import pytest

from protocaffe.coord_map import (
    AxisMismatchException,
    UndefinedMapException,
    compose,
    conv_params,
    coord_map,
    coord_map_from_to,
    crop,
    crop_params,
    inverse,
)
from protocaffe.errors import NetError
from protocaffe.net import Net
from protocaffe.net_spec import NetSpec
from protocaffe.net_spec import layers as L
from protocaffe.net_spec import params as P


@pytest.fixture
def data():
    return L.Input(shape={"dim": [1, 3, 40, 40]})


def down(bottom, pad=0, kernel=3, factor=2):
    """A convolution, then a pooling layer that divides the size."""
    conv = L.Convolution(bottom, num_output=2, kernel_size=kernel, pad=pad)
    return L.Pooling(conv, pool=P.Pooling.MAX, kernel_size=factor, stride=factor)


def up(bottom, factor=2, pad=0):
    param = {"num_output": 2, "kernel_size": factor, "stride": factor, "pad": pad}
    return L.Deconvolution(bottom, convolution_param=param)


def check(found, axis, scale, offset):
    assert found[0] == axis
    np.testing.assert_allclose(np.broadcast_arrays(found[1], scale)[0], scale)
    np.testing.assert_allclose(np.broadcast_arrays(found[2], offset)[0], offset)


def test_conv_pool_deconv(data):
    conv = L.Convolution(data, num_output=2, kernel_size=3)
    pool = L.Pooling(conv, kernel_size=2, stride=2)
    back = up(pool)
    check(coord_map_from_to(conv, data), 1, 1, 1)
    check(coord_map_from_to(pool, data), 1, 2, 1.5)
    check(coord_map_from_to(back, data), 1, 1, 1)
    check(coord_map_from_to(data, pool), 1, 0.5, -0.75)


@pytest.mark.parametrize("pad", [0, 5, 100])
def test_padding_moves_by_itself(data, pad):
    check(coord_map_from_to(up(down(data, pad)), data), 1, 1, 1 - pad)


def test_layers_that_leave_coordinates_alone(data):
    top = down(data)
    for layer in (L.ReLU, L.Dropout, L.BatchNorm, L.LRN, L.Swish):
        top = layer(top)
    top = L.Eltwise(top, L.Power(top, power=2))
    check(coord_map_from_to(up(top), data), 1, 1, 1)
    check(coord_map_from_to(L.ReLU(data), data), None, 1, 0)


def test_two_branches_meet_at_their_common_blob(data):
    coarse, fine = up(down(data, pad=3), factor=2), L.Convolution(data, num_output=2, kernel_size=1)
    check(coord_map_from_to(coarse, fine), 1, 1, -2)


def test_kernels_may_have_two_sizes_and_dilation(data):
    conv = L.Convolution(data, num_output=2, kernel_size=[3, 5], pad=[1, 4], dilation=[1, 2])
    check(coord_map_from_to(conv, data), 1, 1, [0, 0])
    apart = L.Convolution(
        data, num_output=2, kernel_h=3, kernel_w=5, stride_h=2, stride_w=1, pad_h=0, pad_w=2
    )
    check(coord_map_from_to(apart, data), 1, [2, 1], [1, 0])
    axis, stride, kernel, pad = conv_params(apart.fn)
    assert (axis, *map(list, (stride, kernel, pad))) == (1, [2, 1], [3, 5], [0, 2])


def test_volumes():
    data = L.Input(shape={"dim": [1, 1, 9, 9, 9]})
    conv = L.Convolution(data, num_output=1, kernel_size=3, stride=[1, 2, 3], pad=[0, 1, 2])
    check(coord_map_from_to(conv, data), 1, [1, 2, 3], [1, 0, -1])


def test_crop_of_a_crop(data):
    once = L.Crop(data, down(data), axis=2, offset=5)
    twice = L.Crop(once, down(data), crop_param={"axis": 2, "offset": [10, 20]})
    axis, offset = crop_params(twice.fn)
    assert (axis, list(offset)) == (2, [10, 20])
    check(coord_map_from_to(once, data), 1, 1, 5)
    check(coord_map_from_to(twice, data), 1, 1, [15, 25])


def test_maps_compose_and_invert():
    one, other = (1, np.array([2.0]), np.array([3.0])), (None, 1, 0)
    assert compose(one, other) == one == compose(other, one)
    check(compose(one, inverse(one)), 1, 1, 0)
    with pytest.raises(AxisMismatchException, match="behind axis 1 and 2"):
        compose(one, (2, 1, 0))


def test_cropped_blobs_lie_on_each_other():
    n = NetSpec()
    n.data = L.Input(shape={"dim": [1, 3, 21, 30]})
    n.score = crop(up(down(n.data, pad=10)), n.data)
    layer = n.to_proto().layer[-1]
    assert (layer.crop_param.axis, list(layer.crop_param.offset)) == (2, [9])
    net = Net(n.to_proto())
    assert net.blobs["score"].shape == (1, 2, 21, 30)


def test_nothing_to_crop(data):
    top = crop(L.ReLU(data), data)
    param = top.fn.to_layer("", [], []).crop_param
    assert (param.axis, list(param.offset)) == (2, [0])


def test_blobs_without_a_common_one(data):
    flat = L.InnerProduct(data, num_output=4)
    with pytest.raises(NetError, match="no map from a top of InnerProduct to one of Input"):
        coord_map_from_to(flat, data)
    with pytest.raises(UndefinedMapException, match="do not pass a layer of type InnerProduct"):
        coord_map(flat.fn)
    with pytest.raises(UndefinedMapException, match="global_pooling"):
        coord_map(L.Pooling(data, global_pooling=True).fn)
    with pytest.raises(NetError, match="a Convolution layer has no kernel_size"):
        coord_map(L.Convolution(data, num_output=2).fn)


def test_crops_that_cannot_be(data):
    with pytest.raises(NetError, match="is 2 steps in the other; expected 1"):
        crop(down(data), data)
    with pytest.raises(NetError, match="the offset would be -1; expected whole numbers"):
        crop(up(down(data)), data)
    with pytest.raises(NetError, match=r"the offset would be 0\.5"):
        crop(L.Convolution(data, num_output=2, kernel_size=2, pad=1), data)
