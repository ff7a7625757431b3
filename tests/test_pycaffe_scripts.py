"""Scripts and notebooks as people wrote them for pycaffe, over small nets and data.

They are kept in the style of their time on purpose: what they do is what has to go on working.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import protocaffe as caffe
from protocaffe import layers as L
from protocaffe import params as P
from protocaffe.proto import caffe_pb2


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    caffe.set_random_seed(3)


@pytest.fixture
def digits():
    """40 gray images of 16x16 pixels in an LMDB, made as many scripts did; the label is a bar."""
    import lmdb

    rng = np.random.RandomState(0)
    env = lmdb.open("digits_lmdb", map_size=40 * 1000 * 10)
    with env.begin(write=True) as txn:
        for i in range(40):
            X = rng.randint(0, 60, (1, 16, 16)).astype(np.uint8)
            X[0, 3 + i % 10] += 190
            datum = caffe.io.array_to_datum(X, i % 10)
            str_id = f"{i:08}"
            txn.put(str_id.encode("ascii"), datum.SerializeToString())
    env.close()
    return "digits_lmdb"


@pytest.fixture
def photos(tmp_path):
    """Coloured images of two kinds, reddish (0) and bluish (1), and lists of them."""
    from PIL import Image

    rng = np.random.RandomState(0)
    lines = []
    for i in range(16):
        pixels = rng.randint(0, 100, (20, 24, 3), np.uint8)
        pixels[..., 2 * (i % 2)] += 120
        Image.fromarray(pixels).save(tmp_path / f"photo{i}.png")
        lines.append(f"photo{i}.png {i % 2}\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "test.txt").write_text("".join(lines[:8]))
    return lines


CLASSIFIER = """
name: "TinyNet"
input: "data"
input_shape { dim: 10 dim: 3 dim: 18 dim: 18 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 16 kernel_size: 5 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "norm1" type: "LRN" bottom: "conv1" top: "norm1" lrn_param { local_size: 5 } }
layer { name: "pool1" type: "Pooling" bottom: "norm1" top: "pool1"
  pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "fc6" type: "InnerProduct" bottom: "pool1" top: "fc6"
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" }
layer { name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc7" top: "prob" }
"""


def write_classifier():
    Path("deploy.prototxt").write_text(CLASSIFIER)
    caffe.Net("deploy.prototxt", caffe.TEST).save("tiny.caffemodel")


def test_00_classification(photos):
    write_classifier()
    caffe.set_mode_cpu()
    model_def = "deploy.prototxt"
    model_weights = "tiny.caffemodel"

    net = caffe.Net(
        model_def,  # defines the structure of the model
        model_weights,  # contains the trained weights
        caffe.TEST,  # use test mode (e.g., don't perform dropout)
    )

    mu = np.array([104.0, 117.0, 123.0])
    transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", mu)
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))

    net.blobs["data"].reshape(5, 3, 18, 18)
    image = caffe.io.load_image("photo0.png")
    transformed_image = transformer.preprocess("data", image)
    net.blobs["data"].data[...] = transformed_image

    output = net.forward()
    output_prob = output["prob"][0]
    assert output_prob.argmax() in (0, 1)
    np.testing.assert_allclose(output["prob"].sum(axis=1), np.ones(5), rtol=1e-5)

    shapes = [(layer_name, blob.data.shape) for layer_name, blob in net.blobs.items()]
    assert shapes == [
        ("data", (5, 3, 18, 18)),
        ("conv1", (5, 16, 14, 14)),
        ("norm1", (5, 16, 14, 14)),
        ("pool1", (5, 16, 7, 7)),
        ("fc6", (5, 12)),
        ("fc7", (5, 2)),
        ("prob", (5, 2)),
    ]
    for layer_name, param in net.params.items():
        print(layer_name + "\t" + str(param[0].data.shape), str(param[1].data.shape))
    filters = net.params["conv1"][0].data
    assert filters.transpose(0, 2, 3, 1).shape == (16, 5, 5, 3)
    feat = net.blobs["conv1"].data[0, :36]
    assert feat.min() >= 0

    # one image again, through a held output
    before = output["prob"].copy()
    net.blobs["data"].data[...] = transformer.preprocess("data", caffe.io.load_image("photo1.png"))
    net.forward()
    assert (output["prob"] != before).any()

    # features by layer name
    net.forward(end="drop6")
    feat = net.blobs["fc6"].data[0]
    assert feat.flat[0] == net.forward(["fc6"])["fc6"].flat[0]


def test_classify_by_batches_and_look_at_gradients(photos):
    """forward_all, force_backward and the saliency map of a class."""
    Path("saliency.prototxt").write_text("force_backward: true\n" + CLASSIFIER)
    net = caffe.Net("saliency.prototxt", caffe.TEST)
    images = np.random.rand(23, 3, 18, 18)
    out = net.forward_all(data=images)
    assert out["prob"].shape == (23, 2)
    single = net.forward(data=images[:10])
    np.testing.assert_allclose(out["prob"][:10], single["prob"], rtol=1e-5)

    net.forward()
    label = np.zeros((10, 2), np.float32)
    label[:, 1] = 1
    grads = net.backward(prob=label)
    assert grads["data"].shape == (10, 3, 18, 18)
    assert np.abs(grads["data"]).max() > 0

    # deep dreams: from a layer in the middle
    src, end = net.blobs["data"], "pool1"
    dst = net.blobs[end]
    g = src.diff
    for _ in range(3):
        net.forward(end=end)
        dst.diff[:] = dst.data
        net.backward(start=end)
        src.data[:] += 0.1 / np.abs(g).mean() * g
    activity = (dst.data**2).sum()
    net.forward(end=end)
    assert (dst.data**2).sum() > activity

    outs, diffs = net.forward_backward_all(["fc7"], ["fc7"], data=images, prob=np.ones((23, 2)))
    assert {name: each.shape for name, each in outs.items()} == {"prob": (23, 2), "fc7": (23, 2)}
    assert {name: each.shape for name, each in diffs.items()} == {
        "data": (23, 3, 18, 18),
        "fc7": (23, 2),
    }


def lenet(lmdb, batch_size):
    n = caffe.NetSpec()
    n.data, n.label = L.Data(
        batch_size=batch_size,
        backend=P.Data.LMDB,
        source=lmdb,
        transform_param=dict(scale=1.0 / 255),
        ntop=2,
    )
    n.conv1 = L.Convolution(n.data, kernel_size=5, num_output=8, weight_filler=dict(type="xavier"))
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.conv2 = L.Convolution(n.pool1, kernel_size=3, num_output=8, weight_filler=dict(type="xavier"))
    n.pool2 = L.Pooling(n.conv2, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.fc1 = L.InnerProduct(n.pool2, num_output=32, weight_filler=dict(type="xavier"))
    n.relu1 = L.ReLU(n.fc1, in_place=True)
    n.score = L.InnerProduct(n.relu1, num_output=10, weight_filler=dict(type="xavier"))
    n.loss = L.SoftmaxWithLoss(n.score, n.label)
    return n.to_proto()


def test_01_learning_lenet(digits):
    with open("lenet_auto_train.prototxt", "w") as f:
        f.write(str(lenet(digits, 8)))
    with open("lenet_auto_test.prototxt", "w") as f:
        f.write(str(lenet(digits, 10)))
    with open("lenet_auto_solver.prototxt", "w") as f:
        f.write("""
train_net: "lenet_auto_train.prototxt"
test_net: "lenet_auto_test.prototxt"
test_iter: 4
test_interval: 500
base_lr: 0.05
momentum: 0.9
weight_decay: 0.0005
lr_policy: "inv"
gamma: 0.0001
power: 0.75
max_iter: 100
snapshot: 5000
snapshot_prefix: "lenet"
""")
    caffe.set_device(0)
    caffe.set_mode_cpu()
    solver = None  # ignore this workaround for lmdb data
    solver = caffe.SGDSolver("lenet_auto_solver.prototxt")

    shapes = [(k, v.data.shape) for k, v in solver.net.blobs.items()]
    assert shapes[0] == ("data", (8, 1, 16, 16))
    assert [(k, v[0].data.shape) for k, v in solver.net.params.items()][-1] == ("score", (10, 32))

    first = solver.net.forward()  # train net
    assert first["loss"].shape == ()
    solver.test_nets[0].forward()  # test net (there can be more than one)
    images = solver.net.blobs["data"].data[:8, 0].transpose(1, 0, 2).reshape(16, 8 * 16)
    assert images.max() <= 1
    solver.step(1)
    assert solver.net.params["conv1"][0].diff[:, 0].shape == (8, 5, 5)

    niter, test_interval = 100, 25
    train_loss = np.zeros(niter)
    test_acc = np.zeros(int(np.ceil(niter / test_interval)))
    output = np.zeros((niter, 8, 10))
    for it in range(niter):
        solver.step(1)  # SGD by Caffe
        train_loss[it] = solver.net.blobs["loss"].data
        # store the output on the first test batch
        # (start the forward pass at conv1 to avoid loading new data)
        solver.test_nets[0].forward(start="conv1")
        output[it] = solver.test_nets[0].blobs["score"].data[:8]
        if it % test_interval == 0:
            correct = 0
            for _ in range(4):
                solver.test_nets[0].forward()
                correct += sum(
                    solver.test_nets[0].blobs["score"].data.argmax(1)
                    == solver.test_nets[0].blobs["label"].data
                )
            test_acc[it // test_interval] = correct / 40.0
    assert train_loss[-5:].mean() < train_loss[:5].mean() / 2
    assert test_acc[-1] > 0.8
    assert (output[0] != output[-1]).any()

    # the second half: a solver made by hand
    s = caffe_pb2.SolverParameter()
    s.random_seed = 0xCAFFE
    s.train_net = "lenet_auto_train.prototxt"
    s.test_net.append("lenet_auto_test.prototxt")
    s.test_interval = 500
    s.test_iter.append(4)
    s.max_iter = 20
    s.type = "Adam"
    s.base_lr = 0.01
    s.momentum = 0.75
    s.weight_decay = 5e-4
    s.lr_policy = "inv"
    s.gamma = 0.0001
    s.power = 0.75
    s.display = 1000
    s.snapshot = 5000
    s.snapshot_prefix = "custom_net"
    with open("custom_solver.prototxt", "w") as f:
        f.write(str(s))
    solver = caffe.get_solver("custom_solver.prototxt")
    assert isinstance(solver, caffe.AdamSolver)
    solver.solve()
    assert solver.iter == 20
    assert os.path.exists("custom_net_iter_20.solverstate")
    again = caffe.AdamSolver("custom_solver.prototxt")
    again.restore("custom_net_iter_20.solverstate")
    assert again.iter == 20
    for name, blobs in solver.net.params.items():
        assert (again.net.params[name][0].data == blobs[0].data).all()


weight_param = dict(lr_mult=1, decay_mult=1)
bias_param = dict(lr_mult=2, decay_mult=0)
learned_param = [weight_param, bias_param]
frozen_param = [dict(lr_mult=0)] * 2


def stylenet(data, label=None, train=True, num_classes=2, classifier_name="fc8", learn_all=False):
    param = learned_param if learn_all else frozen_param
    n = caffe.NetSpec()
    n.data = data
    n.conv1 = L.Convolution(
        n.data,
        kernel_size=5,
        stride=2,
        num_output=16,
        param=param,
        weight_filler=dict(type="gaussian", std=0.01),
        bias_filler=dict(type="constant", value=0.1),
    )
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.AVE, global_pooling=True)
    n.fc7 = L.InnerProduct(
        n.pool1, num_output=16, param=param, weight_filler=dict(type="gaussian", std=0.3)
    )
    n.relu7 = L.ReLU(n.fc7, in_place=True)
    fc7input = n.drop7 = L.Dropout(n.relu7, in_place=True) if train else n.relu7
    fc8 = L.InnerProduct(
        fc7input, num_output=num_classes, param=learned_param, weight_filler=dict(type="xavier")
    )
    n.__setattr__(classifier_name, fc8)
    if not train:
        n.probs = L.Softmax(fc8)
    if label is not None:
        n.label = label
        n.loss = L.SoftmaxWithLoss(fc8, n.label)
        n.acc = L.Accuracy(fc8, n.label)
    with open(f"style_{train}_{learn_all}_{classifier_name}.prototxt", "w") as f:
        f.write(str(n.to_proto()))
        return f.name


def style_net(train=True, learn_all=False, subset="train"):
    data, label = L.ImageData(
        transform_param=dict(mirror=train, crop_size=16, mean_value=[104, 117, 123], scale=0.02),
        source=f"{subset}.txt",
        batch_size=8,
        new_height=20,
        new_width=20,
        ntop=2,
    )
    return stylenet(data, label, train, 2, "fc8_flickr", learn_all)


def style_solver(train_net_path, test_net_path=None, base_lr=0.1):
    s = caffe_pb2.SolverParameter()
    s.train_net = train_net_path
    if test_net_path is not None:
        s.test_net.append(test_net_path)
        s.test_interval = 1000
        s.test_iter.append(2)
    s.iter_size = 1
    s.max_iter = 100000
    s.type = "SGD"
    s.base_lr = base_lr
    s.lr_policy = "step"
    s.gamma = 0.1
    s.stepsize = 20000
    s.momentum = 0.9
    s.weight_decay = 5e-4
    s.display = 1000
    s.snapshot = 10000
    s.snapshot_prefix = "style"
    s.solver_mode = caffe_pb2.SolverParameter.GPU
    with open("style_solver.prototxt", "w") as f:
        f.write(str(s))
        return f.name


def run_solvers(niter, solvers, disp_interval=10):
    """Run solvers for niter iterations, returning the loss and accuracy recorded each one."""
    blobs = ("loss", "acc")
    loss, acc = ({name: np.zeros(niter) for name, _ in solvers} for _ in blobs)
    for it in range(niter):
        for name, s in solvers:
            s.step(1)  # run a single SGD step in Caffe
            loss[name][it], acc[name][it] = (s.net.blobs[b].data.copy() for b in blobs)
    weights = {}
    for name, s in solvers:
        weights[name] = os.path.join(os.getcwd(), f"weights.{name}.caffemodel")
        s.net.save(weights[name])
    return loss, acc, weights


def test_02_fine_tuning(photos):
    dummy_data = L.DummyData(shape=dict(dim=[1, 3, 16, 16]))
    imagenet_net_filename = stylenet(data=dummy_data, train=False, classifier_name="fc8")
    caffe.Net(imagenet_net_filename, caffe.TEST).save("imagenet.caffemodel")
    weights = "imagenet.caffemodel"

    untrained_style_net = caffe.Net(style_net(train=False, subset="train"), weights, caffe.TEST)
    untrained_style_net.forward()
    style_data_batch = untrained_style_net.blobs["data"].data.copy()
    assert style_data_batch.shape == (8, 3, 16, 16)

    imagenet_net = caffe.Net(imagenet_net_filename, weights, caffe.TEST)
    imagenet_net.blobs["data"].data[0, ...] = style_data_batch[0]
    imagenet_net.forward(start="conv1")
    untrained_style_net.forward()
    np.testing.assert_array_equal(
        imagenet_net.params["fc7"][0].data, untrained_style_net.params["fc7"][0].data
    )

    niter = 40
    style_solver_filename = style_solver(style_net(train=True))
    solver = caffe.get_solver(style_solver_filename)
    solver.net.copy_from(weights)
    scratch_style_solver = caffe.get_solver(style_solver_filename)
    solvers = [("pretrained", solver), ("scratch", scratch_style_solver)]
    frozen = solver.net.params["conv1"][0].data.copy()
    loss, _, trained = run_solvers(niter, solvers)
    assert loss["pretrained"][-5:].mean() < loss["pretrained"][:5].mean()
    assert (solver.net.params["conv1"][0].data == frozen).all()
    del solver, scratch_style_solver, solvers

    test_net = caffe.Net(style_net(train=False, subset="test"), trained["pretrained"], caffe.TEST)
    accuracy = 0
    for _ in range(4):
        accuracy += test_net.forward()["acc"]
    accuracy /= 4
    assert accuracy > 0.7

    # end to end
    end_to_end_net = style_net(train=True, learn_all=True)
    style_solver_filename = style_solver(end_to_end_net, base_lr=0.001)
    solver = caffe.get_solver(style_solver_filename)
    solver.net.copy_from(trained["pretrained"])
    run_solvers(3, [("pretrained, end-to-end", solver)])
    assert (solver.net.params["conv1"][0].data != frozen).any()


def test_net_surgery(photos):
    Path("conv.prototxt").write_text("""
name: "convolution"
input: "data"
input_dim: 1
input_dim: 1
input_dim: 100
input_dim: 100
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 3 kernel_size: 5 stride: 1
    weight_filler { type: "gaussian" std: 0.01 } bias_filler { type: "constant" value: 0 } } }
""")
    net = caffe.Net("conv.prototxt", caffe.TEST)
    shown = f"blobs {list(net.blobs.keys())}\nparams {list(net.params.keys())}"
    assert shown == "blobs ['data', 'conv']\nparams ['conv']"

    im = caffe.io.load_image("photo0.png", color=False).squeeze()
    im_input = im[np.newaxis, np.newaxis, :, :]
    net.blobs["data"].reshape(*im_input.shape)
    net.blobs["data"].data[...] = im_input
    net.forward()
    before = net.blobs["conv"].data.copy()
    assert before.shape == (1, 3, 16, 20)

    # set the bias of the first filter, and its weights to a blur; see the result
    net.params["conv"][1].data[0] = 1.0
    net.forward()
    np.testing.assert_allclose(net.blobs["conv"].data[0, 0], before[0, 0] + 1, rtol=1e-5)
    ksize = net.params["conv"][0].data.shape[2:]
    g = np.outer(np.hanning(ksize[0]), np.hanning(ksize[1]))
    net.params["conv"][0].data[0] = g / g.sum()
    net.params["conv"][0].data[1:, 0] = [np.eye(5), -np.eye(5)]
    net.params["conv"][1].data[...] = 0
    net.forward()
    expected = sum(
        net.params["conv"][0].data[0, 0, i, j] * im[i : i + 16, j : j + 20]
        for i in range(5)
        for j in range(5)
    )
    np.testing.assert_allclose(net.blobs["conv"].data[0, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(net.blobs["conv"].data[0, 1], -net.blobs["conv"].data[0, 2])

    # casting a classifier into a fully convolutional network
    write_classifier()
    net = caffe.Net("deploy.prototxt", "tiny.caffemodel", caffe.TEST)
    params = ["fc6", "fc7"]
    fc_params = {pr: (net.params[pr][0].data, net.params[pr][1].data) for pr in params}
    for fc in params:
        print(f"{fc} weights are {fc_params[fc][0].shape} dimensional")
    conv = CLASSIFIER.replace("dim: 10 dim: 3 dim: 18 dim: 18", "dim: 1 dim: 3 dim: 34 dim: 34")
    for old, new, kernel in (("fc6", "fc6-conv", 7), ("fc7", "fc7-conv", 1)):
        conv = conv.replace(f'"{old}"', f'"{new}"')
        head, tail = conv.split(f'name: "{new}" type: "InnerProduct"')
        tail = tail.replace(
            "inner_product_param {", f"convolution_param {{ kernel_size: {kernel}", 1
        )
        conv = f'{head}name: "{new}" type: "Convolution"{tail}'
    Path("full_conv.prototxt").write_text(conv)
    net_full_conv = caffe.Net("full_conv.prototxt", "tiny.caffemodel", caffe.TEST)
    params_full_conv = ["fc6-conv", "fc7-conv"]
    conv_params = {
        pr: (net_full_conv.params[pr][0].data, net_full_conv.params[pr][1].data)
        for pr in params_full_conv
    }
    for pr, pr_conv in zip(params, params_full_conv, strict=True):
        conv_params[pr_conv][0].flat = fc_params[pr][0].flat  # flat unrolls the arrays
        conv_params[pr_conv][1][...] = fc_params[pr][1]
    net_full_conv.save("full_conv.caffemodel")

    im = caffe.io.resize_image(caffe.io.load_image("photo0.png"), (34, 34))
    transformer = caffe.io.Transformer({"data": net_full_conv.blobs["data"].data.shape})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_raw_scale("data", 255.0)
    whole = transformer.preprocess("data", im)
    out = net_full_conv.forward_all(data=np.asarray([whole]))
    assert out["prob"].shape == (1, 2, 9, 9)
    assert out["prob"][0].argmax(axis=0).shape == (9, 9)
    corner = np.zeros((10, 3, 18, 18), np.float32)
    corner[0] = whole[:, :18, :18]
    np.testing.assert_allclose(
        net.forward(data=corner)["prob"][0], out["prob"][0, :, 0, 0], rtol=1e-4
    )


def test_brewing_logreg():
    import h5py

    rng = np.random.RandomState(0)
    y = np.repeat([0, 1], 60)
    X = rng.randn(120, 4) + y[:, np.newaxis] * [2, -1, 0, 0]
    order = rng.permutation(120)
    X, y = X[order], y[order]
    for name, part in (("train", slice(0, 90)), ("test", slice(90, 120))):
        with h5py.File(f"{name}.h5", "w") as f:
            f["data"] = X[part].astype(np.float32)
            f["label"] = y[part].astype(np.float32)
        with open(f"{name}.txt", "w") as f:
            f.write(f"{name}.h5\n")

    def logreg(hdf5, batch_size):
        n = caffe.NetSpec()
        n.data, n.label = L.HDF5Data(batch_size=batch_size, source=hdf5, ntop=2)
        n.ip1 = L.InnerProduct(n.data, num_output=2, weight_filler=dict(type="xavier"))
        n.accuracy = L.Accuracy(n.ip1, n.label)
        n.loss = L.SoftmaxWithLoss(n.ip1, n.label)
        return n.to_proto()

    for name in ("train", "test"):
        with open(f"logreg_auto_{name}.prototxt", "w") as f:
            f.write(str(logreg(f"{name}.txt", 10)))
    s = caffe_pb2.SolverParameter()
    s.train_net = "logreg_auto_train.prototxt"
    s.test_net.append("logreg_auto_test.prototxt")
    s.test_interval = 50
    s.test_iter.append(3)
    s.max_iter = 150
    s.base_lr = 0.1
    s.lr_policy = "step"
    s.gamma = 0.1
    s.stepsize = 5000
    s.momentum = 0.9
    s.weight_decay = 5e-4
    s.display = 1000
    s.snapshot = 10000
    s.snapshot_prefix = "logreg"
    s.solver_mode = caffe_pb2.SolverParameter.CPU
    with open("logreg_solver.prototxt", "w") as f:
        f.write(str(s))
    caffe.set_mode_cpu()
    solver = caffe.get_solver("logreg_solver.prototxt")
    solver.solve()
    accuracy = 0
    batch_size = solver.test_nets[0].blobs["data"].num
    test_iters = int(30 / batch_size)
    for _ in range(test_iters):
        solver.test_nets[0].forward()
        accuracy += solver.test_nets[0].blobs["accuracy"].data
    accuracy /= test_iters
    assert accuracy > 0.8


MULTILABEL = '''
import json

import numpy as np

import protocaffe as caffe


class MultilabelDataLayerSync(caffe.Layer):
    """Loads images and several labels for each, synchronously."""

    def setup(self, bottom, top):
        self.top_names = ["data", "label"]
        params = eval(self.param_str)
        check_params(params)
        self.batch_size = params["batch_size"]
        self.batch_loader = BatchLoader(params, None)
        top[0].reshape(self.batch_size, 3, params["im_shape"][0], params["im_shape"][1])
        # note the 3 classes
        top[1].reshape(self.batch_size, 3)

    def forward(self, bottom, top):
        for itt in range(self.batch_size):
            im, multilabel = self.batch_loader.load_next_image()
            top[0].data[itt, ...] = im
            top[1].data[itt, ...] = multilabel

    def reshape(self, bottom, top):
        pass

    def backward(self, top, propagate_down, bottom):
        pass


class BatchLoader(object):
    def __init__(self, params, result):
        self.random = np.random.RandomState(1 if params["split"] == "train" else 2)
        self.shape = params["im_shape"]

    def load_next_image(self):
        multilabel = self.random.randint(0, 2, 3).astype(np.float32)
        im = self.random.rand(3, *self.shape)
        im += multilabel[:, None, None]
        return im - 1, multilabel


def check_params(params):
    for r in ("split", "batch_size", "im_shape"):
        assert r in params.keys(), "Params must include {}".format(r)


class EuclideanLossLayer(caffe.Layer):
    """The loss of the documentation's example."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("Need two inputs to compute distance.")

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise Exception("Inputs must have the same dimension.")
        self.diff = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.diff**2) / bottom[0].num / 2.

    def backward(self, top, propagate_down, bottom):
        for i in range(2):
            if not propagate_down[i]:
                continue
            if i == 0:
                sign = 1
            else:
                sign = -1
            bottom[i].diff[...] = sign * self.diff / bottom[i].num
'''


def test_pascal_multilabel(tmp_path):
    (tmp_path / "multilabel_datalayers.py").write_text(MULTILABEL)

    def multilabel_net(data_layer_params, datalayer):
        n = caffe.NetSpec()
        n.data, n.label = L.Python(
            module="multilabel_datalayers",
            layer=datalayer,
            ntop=2,
            param_str=str(data_layer_params),
        )
        n.conv1 = L.Convolution(
            n.data, kernel_size=3, num_output=16, weight_filler=dict(type="xavier")
        )
        n.relu1 = L.ReLU(n.conv1, in_place=True)
        n.pool1 = L.Pooling(n.relu1, pool=P.Pooling.AVE, global_pooling=True)
        n.score = L.InnerProduct(n.pool1, num_output=3, weight_filler=dict(type="xavier"))
        n.loss = L.SigmoidCrossEntropyLoss(n.score, n.label)
        return str(n.to_proto())

    for split, name in (("train", "trainnet"), ("val", "valnet")):
        params = dict(batch_size=16, im_shape=[9, 9], split=split)
        with open(f"{name}.prototxt", "w") as f:
            f.write(multilabel_net(params, "MultilabelDataLayerSync"))
    Path("solver.prototxt").write_text("""
train_net: "trainnet.prototxt" test_net: "valnet.prototxt" test_iter: 1 test_interval: 250
base_lr: 0.2 lr_policy: "fixed" momentum: 0.9 snapshot: 0 snapshot_after_train: false display: 0
""")
    solver = caffe.SGDSolver("solver.prototxt")
    solver.test_nets[0].share_with(solver.net)
    solver.step(1)
    solver.net.forward()
    assert solver.net.blobs["label"].data.shape == (16, 3)

    def hamming_distance(gt, est):
        return sum([1 for (g, e) in zip(gt, est, strict=True) if g == e]) / float(len(gt))

    def check_accuracy(net, num_batches, batch_size=16):
        acc = 0.0
        for _t in range(num_batches):
            net.forward()
            gts = net.blobs["label"].data
            ests = net.blobs["score"].data > 0
            for gt, est in zip(gts, ests, strict=True):
                acc += hamming_distance(gt, est)
        return acc / (num_batches * batch_size)

    start = check_accuracy(solver.test_nets[0], 3)
    for _ in range(4):
        solver.step(40)
    assert check_accuracy(solver.test_nets[0], 3) > max(0.8, start)

    net = caffe.Net(
        """
        layer { name: "data" type: "Input" top: "a" top: "b"
                input_param { shape { dim: 4 dim: 3 } } }
        layer { name: "ip" type: "InnerProduct" bottom: "a" top: "ip"
                inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
        layer { type: "Python" name: "loss" top: "loss" bottom: "ip" bottom: "b" loss_weight: 1
                python_param { module: "multilabel_datalayers" layer: "EuclideanLossLayer" } }
        """,
        caffe.TRAIN,
    )
    rng = np.random.RandomState(5)
    net.blobs["a"].data[...] = rng.rand(4, 3)
    net.blobs["b"].data[...] = rng.rand(4, 3)
    first = net.forward()["loss"].copy()
    for _ in range(50):
        net.clear_param_diffs()
        net.forward()
        net.backward()
        for layer in net.layers:
            for blob in layer.blobs:
                blob.data[...] -= 0.3 * blob.diff
    assert net.forward()["loss"] < first / 2
    sys.modules.pop("multilabel_datalayers")


def test_names_by_which_scripts_look_into_a_net(digits):
    Path("lenet.prototxt").write_text(str(lenet(digits, 8)))
    net = caffe.Net("lenet.prototxt", caffe.TRAIN)
    assert net._layer_names[:2] == net.layer_names[:2] == ["data", "conv1"]
    assert list(net._layer_names).index("pool2") == 4
    assert [layer.type for layer in net.layers][:3] == ["Data", "Convolution", "Pooling"]
    assert net.layer_dict["conv1"].type == "Convolution"
    assert net.layer_dict["conv1"].blobs[0].shape == (8, 1, 5, 5)
    assert net.top_names["data"] == ["data", "label"]
    assert net.bottom_names["loss"] == ["score", "label"]
    assert net.blob_loss_weights["loss"] == 1
    assert (net.inputs, net.outputs) == ([], ["loss"])
    assert [net._blob_names[i] for i in net._outputs] == ["loss"]
    assert [net._blob_names[i] for i in net._bottom_ids(2)] == ["conv1"]
    assert [net._blob_names[i] for i in net._top_ids(2)] == ["pool1"]
    assert net._blobs[0] is net.blobs["data"]
    assert len(net._blob_loss_weights) == len(net.blobs)
    blob = net.blobs["data"]
    assert (blob.num, blob.channels, blob.height, blob.width) == (8, 1, 16, 16)
    assert blob.count == 8 * 256
    assert net._forward(0, len(net.layers) - 1) > 0
    net._backward(len(net.layers) - 1, 0)
    net.save_hdf5("lenet.weights")
    other = caffe.Net("lenet.prototxt", caffe.TRAIN)
    other.load_hdf5("lenet.weights")
    for name, blobs in net.params.items():
        assert (other.params[name][0].data == blobs[0].data).all()
    seen = []
    net.before_forward(lambda i: seen.append((">", net.layer_names[i])))
    net.after_forward(lambda i: seen.append(("<", net.layer_names[i])))
    net.before_backward(lambda i: seen.append((">>", net.layer_names[i])))
    net.after_backward(lambda i: seen.append(("<<", net.layer_names[i])))
    net.forward(start="conv1", end="pool1")
    net.backward(start="pool1", end="conv1")
    assert seen == [
        *[(">", "conv1"), ("<", "conv1"), (">", "pool1"), ("<", "pool1")],
        *[(">>", "pool1"), ("<<", "pool1"), (">>", "conv1"), ("<<", "conv1")],
    ]


NAMES = {
    caffe: """Net SGDSolver NesterovSolver AdaGradSolver RMSPropSolver AdaDeltaSolver AdamSolver
        NCCL Timer init_log log set_mode_cpu set_mode_gpu set_device Layer get_solver
        layer_type_list set_random_seed solver_count set_solver_count solver_rank set_solver_rank
        set_multiprocess has_nccl set_logging_disabled __version__ TRAIN TEST Classifier Detector
        io layers params NetSpec to_proto proto net_spec classifier detector draw coord_map""",
    caffe.Net: """forward backward forward_all forward_backward_all set_input_arrays reshape
        copy_from share_with clear_param_diffs save save_hdf5 load_hdf5 layer_dict top_names
        bottom_names
        before_forward after_forward before_backward after_backward _forward _backward _blob_names
        _layer_names _inputs _outputs _blobs _blob_loss_weights _top_ids _bottom_ids
        _set_input_arrays""",
    caffe.Blob: "data diff num channels height width count reshape",
    caffe.Layer: "setup reshape forward backward",
    caffe.SGDSolver: """max_iter base_lr lr solve step restore snapshot share_weights apply_update
        add_callback""",
    caffe.NCCL: "new_uid",
    caffe.Timer: "start stop ms",
    caffe.proto.caffe_pb2: "NetParameter SolverParameter LayerParameter Datum BlobProto TRAIN TEST",
}
"""What pycaffe has, as far as it is there before an object is made."""


def test_no_name_is_missing():
    missing = [
        f"{getattr(place, '__name__', place)}.{name}"
        for place, names in NAMES.items()
        for name in names.split()
        if not hasattr(place, name)
    ]
    assert missing == []
    net = caffe.Net(CLASSIFIER, caffe.TEST)
    assert net.blobs["data"].shape == (10, 3, 18, 18)
    for name in ("blobs", "params", "layers", "inputs", "outputs", "blob_loss_weights"):
        assert hasattr(net, name)
    solver = caffe.get_solver(f'net_param {{ {CLASSIFIER} }} base_lr: 0.1 lr_policy: "fixed"')
    for name in ("net", "test_nets", "iter", "param"):
        assert hasattr(solver, name)
    assert sorted(set(caffe.__all__) - set(dir(caffe))) == []


def test_memory_data():
    net = caffe.Net(
        """layer { name: "data" type: "MemoryData" top: "data" top: "label"
             memory_data_param { batch_size: 2 channels: 1 height: 3 width: 3 } }
           layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
             inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }""",
        caffe.TEST,
    )
    images = np.random.rand(4, 1, 3, 3).astype(np.float32)
    net.set_input_arrays(images, np.arange(4, dtype=np.float32))
    for batch in (images[:2], images[2:], images[:2]):
        net.forward()
        assert (net.blobs["data"].data == batch).all()


def test_protobuf_tools_read_and_write_messages(tmp_path):
    import google.protobuf.text_format as txtf
    from google.protobuf import text_format

    from protocaffe.proto import caffe_pb2 as pb

    net = pb.NetParameter()
    text_format.Merge(CLASSIFIER, net)
    net.layer[0].convolution_param.num_output = 4
    (tmp_path / "net.prototxt").write_text(txtf.MessageToString(net))
    built = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    built.save("it.caffemodel")
    stored = pb.NetParameter()
    with open("it.caffemodel", "rb") as f:
        stored.ParseFromString(f.read())
    weights = {layer.name: layer.blobs for layer in stored.layer}
    array = caffe.io.blobproto_to_array(weights["conv1"][0])
    assert (array == built.params["conv1"][0].data).all()
    assert caffe.proto.caffe_pb2.TRAIN == caffe.TRAIN == 0
    assert "Convolution" in caffe.layer_type_list()
    assert caffe.__version__
