import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from benchmarks.torch_net import TorchNet, TranslationError, sgd  # noqa: E402

torch.set_num_threads(1)  # its threads and an engine's would fight

RNG = np.random.default_rng(0)

LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "%s" bottom: "label" %s }'


def torch_net(body, weights=(), shape=(2, 4, 6, 6), scores="y", loss=""):
    """Return the translated net of ``body``, which computes ``scores`` from ``x``."""
    dims = " ".join(f"dim: {extent}" for extent in shape)
    text = (
        f'layer {{ name: "input" type: "Input" top: "x" top: "label" input_param {{'
        f" shape {{ {dims} }} shape {{ dim: {shape[0]} }} }} }}" + body + LOSS % (scores, loss)
    )
    return TorchNet(parse_text(text, caffe_pb2.NetParameter()), dict(weights))


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def images(*shape):
    return torch.from_numpy(draw(*shape))


def assert_same(net, inputs, modules, scores):
    """The net computes the same loss and gradients as hand-written modules."""
    label = inputs[1]
    loss, expected = net(*inputs), F.cross_entropy(scores.flatten(1), label)
    torch.testing.assert_close(loss, expected)
    learned = [weight for weight in net.weights if weight.requires_grad]
    wanted = [weight for module in modules for weight in module.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(loss, learned), torch.autograd.grad(expected, wanted)
    )


def arrays_of(module):
    return [weight.detach().numpy() for weight in module.parameters()]


def test_convolutions_relu_lrn_pooling_and_inner_product():
    conv1 = nn.Conv2d(4, 6, 3, stride=2, padding=2, groups=2)
    conv2 = nn.Conv2d(6, 8, (1, 3), padding=(0, 2), dilation=2, bias=False)
    lrn = nn.LocalResponseNorm(3, 0.5, 0.6, 2.0)
    fc = nn.Linear(8 * 2 * 2, 5)
    net = torch_net(
        """
        layer { name: "conv1" type: "Convolution" bottom: "x" top: "conv1"
          convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 2 group: 2 } }
        layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
        layer { name: "norm" type: "LRN" bottom: "conv1" top: "norm"
          lrn_param { local_size: 3 alpha: 0.5 beta: 0.6 k: 2 } }
        layer { name: "conv2" type: "Convolution" bottom: "norm" top: "conv2"
          convolution_param { num_output: 8 kernel_h: 1 kernel_w: 3 pad_w: 2 dilation: 2
            bias_term: false } }
        layer { name: "pool" type: "Pooling" bottom: "conv2" top: "pool"
          pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
        layer { name: "relu2" type: "ReLU" bottom: "pool" top: "pool"
          relu_param { negative_slope: 0.1 } }
        layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "y"
          inner_product_param { num_output: 5 } }
        """,
        {"conv1": arrays_of(conv1), "conv2": arrays_of(conv2), "fc": arrays_of(fc)},
        shape=(2, 4, 6, 8),
    )
    x, label = images(2, 4, 6, 8), torch.tensor([3, 0])
    pooled = F.max_pool2d(conv2(lrn(F.relu(conv1(x)))), 3, 2, ceil_mode=True)
    scores = fc(F.leaky_relu(pooled, 0.1).flatten(1))
    assert_same(net, (x, label), (conv1, conv2, fc), scores)


def test_batch_norm_and_scale_are_one_operation():
    bn = nn.BatchNorm2d(4, eps=1e-3, momentum=0.001)
    with torch.no_grad():
        bn.weight.copy_(images(4))
        bn.bias.copy_(images(4))
    fc = nn.Linear(4 * 36, 5)
    mean, var, factor = draw(4), draw(4) ** 2, np.array([2.0], np.float32)
    net = torch_net(
        """
        layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" batch_norm_param { eps: 1e-3 } }
        layer { name: "scale" type: "Scale" bottom: "bn" top: "bn" scale_param { bias_term: true } }
        layer { name: "relu" type: "ReLU" bottom: "bn" top: "bn" }
        layer { name: "fc" type: "InnerProduct" bottom: "bn" top: "y" }
        """,
        {"bn": [mean, var, factor], "scale": arrays_of(bn), "fc": arrays_of(fc)},
    )
    assert len(net.steps) == 4
    inputs = images(2, 4, 6, 6), torch.tensor([3, 0])
    bn.running_mean.copy_(torch.from_numpy(mean / 2))
    bn.running_var.copy_(torch.from_numpy(var / 2))
    assert_same(net, inputs, (bn, fc), fc(F.relu(bn(inputs[0])).flatten(1)))
    torch.testing.assert_close(net.weights[0].detach(), bn.running_mean)
    torch.testing.assert_close(net.weights[1].detach(), bn.running_var)


def test_a_scale_whose_bottom_is_read_twice_stays_by_itself():
    factor, shift = draw(4), draw(4)
    net = torch_net(
        """
        layer { name: "bn" type: "BatchNorm" bottom: "x" top: "bn" }
        layer { name: "split" type: "Split" bottom: "bn" top: "bn_0" top: "bn_1" }
        layer { name: "scale" type: "Scale" bottom: "bn_0" top: "s"
          scale_param { bias_term: true } }
        layer { name: "sum" type: "Eltwise" bottom: "bn_1" bottom: "s" top: "y" }
        """,
        {"bn": [np.zeros(4), np.ones(4), np.ones(1)], "scale": [factor, shift]},
        shape=(3, 4, 1, 1),
    )
    x, label = images(3, 4, 1, 1), torch.tensor([3, 0, 1])
    y = F.batch_norm(x, None, None, training=True)
    channels = (1, 4, 1, 1)
    scaled = y * torch.from_numpy(factor).view(channels) + torch.from_numpy(shift).view(channels)
    torch.testing.assert_close(net(x, label), F.cross_entropy((y + scaled).flatten(1), label))


def test_branches_join_by_sum_and_concat():
    conv1, conv2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
    fc = nn.Linear(8 * 36, 5)
    net = torch_net(
        """
        layer { name: "conv1" type: "Convolution" bottom: "x" top: "c1"
          convolution_param { num_output: 4 kernel_size: 1 } }
        layer { name: "split" type: "Split" bottom: "c1" top: "c1_0" top: "c1_1" top: "c1_2" }
        layer { name: "conv2" type: "Convolution" bottom: "c1_0" top: "c2"
          convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
        layer { name: "sum" type: "Eltwise" bottom: "c1_1" bottom: "c2" top: "sum" }
        layer { name: "relu" type: "ReLU" bottom: "sum" top: "sum" }
        layer { name: "cat" type: "Concat" bottom: "c1_2" bottom: "sum" top: "cat" }
        layer { name: "flat" type: "Flatten" bottom: "cat" top: "flat" }
        layer { name: "fc" type: "InnerProduct" bottom: "flat" top: "y" }
        layer { name: "silence" type: "Silence" bottom: "flat" }
        """,
        {"conv1": arrays_of(conv1), "conv2": arrays_of(conv2), "fc": arrays_of(fc)},
    )
    inputs = images(2, 4, 6, 6), torch.tensor([4, 1])
    one = conv1(inputs[0])
    scores = fc(torch.cat([one, F.relu(one + conv2(one))], 1).flatten(1))
    assert_same(net, inputs, (conv1, conv2, fc), scores)


def caffe_pool(x, kernel, stride, pad, ave):
    """Pooling by Caffe's definition, window by window, along two equal axes."""
    extent = x.shape[2]
    size = int(np.ceil((extent + 2 * pad - kernel) / stride)) + 1
    if pad and (size - 1) * stride >= extent + pad:
        size -= 1
    y = np.empty((*x.shape[:2], size, size), x.dtype)
    starts = [index * stride - pad for index in range(size)]
    for i, top in enumerate(starts):
        for j, left in enumerate(starts):
            window = x[:, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            if ave:
                area = (min(top + kernel, extent + pad) - top) * (
                    min(left + kernel, extent + pad) - left
                )
                y[:, :, i, j] = window.sum((2, 3)) / area
            else:
                y[:, :, i, j] = window.max((2, 3))
    return y


@given(
    extent=st.integers(1, 9),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    pad=st.integers(0, 4),
    ave=st.booleans(),
)
def test_pooling_follows_caffe(extent, kernel, stride, pad, ave):
    pad, stride = min(pad, kernel - 1), min(stride, kernel)
    extent = max(extent, kernel - 2 * pad)
    x = draw(1, 2, extent, extent)
    net = torch_net(
        f"""
        layer {{ name: "pool" type: "Pooling" bottom: "x" top: "y" pooling_param {{
          pool: {"AVE" if ave else "MAX"} kernel_size: {kernel} stride: {stride} pad: {pad} }} }}
        """,
        shape=x.shape,
    )
    y = net.steps[0].op(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, caffe_pool(x, kernel, stride, pad, ave), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
def test_global_pooling(method):
    net = torch_net(
        f"""
        layer {{ name: "pool" type: "Pooling" bottom: "x" top: "y"
          pooling_param {{ pool: {method} global_pooling: true }} }}
        """
    )
    x = images(2, 4, 6, 6)
    y = net.steps[0].op(x)
    expected = x.mean((2, 3), keepdim=True) if method == "AVE" else x.amax((2, 3), keepdim=True)
    torch.testing.assert_close(y, expected)


def test_dropout_drops_and_scales_up():
    net = torch_net(
        """
        layer { name: "drop" type: "Dropout" bottom: "x" top: "y"
          dropout_param { dropout_ratio: 0.25 } }
        """
    )
    y = net.steps[0].op(torch.ones(100, 100))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == 0).float().mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", lambda x, t: F.cross_entropy(x, t)),
        ("loss_weight: 0.3", lambda x, t: 0.3 * F.cross_entropy(x, t)),
        ("loss_param { ignore_label: 0 }", lambda x, t: F.cross_entropy(x, t, ignore_index=0)),
        (
            "loss_param { ignore_label: 0 normalization: BATCH_SIZE }",
            lambda x, t: F.cross_entropy(x, t, ignore_index=0, reduction="sum") / 3,
        ),
        (
            "loss_param { ignore_label: 0 normalize: false }",
            lambda x, t: F.cross_entropy(x, t, ignore_index=0, reduction="sum") / 3,
        ),
    ],
)
def test_softmax_loss_settings(settings, expected):
    net = torch_net("", shape=(3, 5), scores="x", loss=settings)
    x, label = images(3, 5), torch.tensor([0, 4, 2])
    torch.testing.assert_close(net(x, label), expected(x, label))


def test_losses_add_up_with_their_weights():
    net = torch_net(
        """
        layer { name: "aux" type: "SoftmaxWithLoss" bottom: "x" bottom: "label" top: "aux"
          loss_weight: 0.5 }
        """,
        shape=(3, 5),
        scores="x",
    )
    x, label = images(3, 5), torch.tensor([0, 4, 2])
    torch.testing.assert_close(net(x, label), 1.5 * F.cross_entropy(x, label))


def test_scores_per_pixel_meet_labels_per_pixel():
    net = torch_net("", shape=(2, 5, 3, 3), scores="x")
    x, label = images(2, 5, 3, 3), torch.randint(5, (2, 1, 3, 3))
    torch.testing.assert_close(net(x, label), F.cross_entropy(x, label[:, 0]))


@pytest.mark.parametrize("how", ["foreach", "fused"])
def test_sgd_updates_as_caffe_does(how):
    weight, bias = draw(5, 4), draw(5)
    net = torch_net(
        """
        layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y"
          param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
          inner_product_param { num_output: 5 } }
        """,
        {"fc": [weight, bias]},
        shape=(3, 4),
    )
    x, label = images(3, 4), torch.tensor([0, 4, 2])
    optimizer = sgd(net, lr=0.1, momentum=0.9, decay=0.01, **{how: True})
    values = [weight.astype(np.float64), bias.astype(np.float64)]
    history = [np.zeros_like(value) for value in values]
    for _ in range(3):
        optimizer.zero_grad()
        net(x, label).backward()
        for i, (rate, decay) in enumerate([(0.1, 0.01), (0.2, 0)]):
            gradient = net.weights[i].grad.numpy() + decay * values[i]
            history[i] = rate * gradient + 0.9 * history[i]
            values[i] = values[i] - history[i]
        optimizer.step()
        for got, want in zip(net.weights, values, strict=True):
            np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-5, atol=1e-6)


def test_a_frozen_parameter_gets_no_gradient():
    net = torch_net(
        """
        layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y" param { lr_mult: 0 }
          inner_product_param { num_output: 5 } }
        """,
        {"fc": [draw(5, 4), draw(5)]},
        shape=(3, 4),
    )
    assert [weight.requires_grad for weight in net.weights] == [False, True]
    groups = sgd(net, 0.1, 0.9, 0.01, foreach=True).param_groups
    assert [len(group["params"]) for group in groups] == [1]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ('type: "Sigmoid"', r"'l' \(Sigmoid\).*Convolution"),
        ('type: "LRN" lrn_param { norm_region: WITHIN_CHANNEL }', "WITHIN_CHANNEL"),
        ('type: "Eltwise" eltwise_param { operation: MAX }', "sum"),
        ('type: "Pooling" pooling_param { kernel_size: 1 stride: 2 }', "stride"),
        ('type: "InnerProduct" inner_product_param { axis: 2 }', "axis"),
        ('type: "InnerProduct" param { name: "shared" }', "shared"),
    ],
)
def test_what_has_no_translation_is_refused_by_name(layer, message):
    with pytest.raises(TranslationError, match=message):
        torch_net(f'layer {{ name: "l" bottom: "x" top: "y" {layer} }}')


def test_a_net_without_a_loss_is_refused():
    text = 'name: "deploy" layer { name: "in" type: "Input" top: "x" }'
    with pytest.raises(TranslationError, match="'deploy' has no SoftmaxWithLoss"):
        TorchNet(parse_text(text, caffe_pb2.NetParameter()), {})
