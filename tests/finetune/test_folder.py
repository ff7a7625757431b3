import numpy as np
import pytest

from protocaffe.errors import FileError, NetError, UsageError, WeightsError
from protocaffe.finetune.folder import make_folder
from protocaffe.finetune.images import find_images
from protocaffe.finetune.origin import read_origin
from protocaffe.finetune.preparation import choose_preparation
from protocaffe.finetune.texts import Recipe
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.binary import array_to_blob
from protocaffe.proto.text import parse_text, read_net, read_solver
from protocaffe.solvers import get_solver
from protocaffe.zoo.catalogue import read_readme
from tests.finetune.samples import NET, write_images

README = "---\nname: Tiny\ncaffemodel: tiny.caffemodel\n---\nTiny.\n"


@pytest.fixture
def model(tmp_path):
    """A folder with a trained net of one channel."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "readme.md").write_text(README)
    (folder / "train_val.prototxt").write_text(NET)
    text = NET[NET.index('layer { name: "conv1"') :]
    start = (
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [1,1,8,8] } } }'
    )
    deploy = start + text[: text.index('layer { name: "side"')]
    deploy += text[text.index('layer { name: "conv2"') : text.index('layer { name: "accuracy"')]
    (folder / "deploy.prototxt").write_text(deploy)
    (folder / "solver.prototxt").write_text('base_lr: 0.1 type: "Nesterov" weight_decay: 0.5')
    Net(folder / "deploy.prototxt", engine="numpy", seed=1).save(folder / "tiny.caffemodel")
    return folder


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "photos", {"dark": 10, "grey": 10, "light": 5}, size=12)
    return tmp_path / "photos"


@pytest.fixture
def make(model, photos, tmp_path):
    def make(recipe=None, **options):
        origin = read_origin(str(model), scratch=options.pop("scratch", False))
        images = find_images(photos)
        return make_folder(
            *(tmp_path / "out", origin, images, choose_preparation(origin), recipe or Recipe()),
            **options,
        )

    return make


def test_the_folder_has_all_that_training_needs(make, tmp_path, model):
    path = make(suffix="photos")
    assert path == tmp_path / "out" / "solver.prototxt"
    solver, _ = read_solver(path)
    assert solver.type == "Nesterov"
    assert solver.base_lr == pytest.approx(0.01)
    assert solver.weights == [str(model / "tiny.caffemodel")]
    assert solver.max_iter == 100
    assert read_readme(path.parent / "readme.md").caffemodel == "out_iter_100.caffemodel"
    assert (path.parent / "labels.txt").read_text() == "dark\ngrey\nlight\n"
    net, _ = read_net(solver.net)
    layers = {layer.name: layer for layer in net.layer}
    head = layers["conv2_photos"]
    assert head.convolution_param.num_output == 3
    assert [spec.lr_mult for spec in head.param] == [10, 20]
    assert [spec.lr_mult for spec in layers["conv1"].param] == [1, 2]
    assert "side" not in layers
    train, test = (layer for layer in net.layer if layer.name == "data")
    assert train.transform_param.mirror
    assert not test.transform_param.mirror
    assert test.transform_param.mean_value == [9]


def test_it_trains_from_the_old_weights(make, model):
    solver = get_solver(read_solver(make())[0], engine="numpy")
    old = Net(model / "deploy.prototxt", weights=model / "tiny.caffemodel", engine="numpy")
    new = solver.net.params
    np.testing.assert_array_equal(new["conv1"][0].data, old.params["conv1"][0].data)
    assert new["conv2_new"][0].shape == (3, 4, 1, 1)
    solver.step(3)
    assert (new["conv1"][0].data != old.params["conv1"][0].data).any()


def test_frozen_layers_stay(make, model):
    solver = get_solver(read_solver(make(Recipe(freeze=True)))[0], engine="numpy")
    before = {name: blobs[0].data.copy() for name, blobs in solver.net.params.items()}
    solver.step(2)
    changed = {n for n, b in solver.net.params.items() if (b[0].data != before[n]).any()}
    assert changed == {"conv2_new"}


def test_random_weights_learn_at_the_old_rate(make):
    solver, _ = read_solver(make(scratch=True))
    assert not solver.weights
    assert solver.base_lr == pytest.approx(0.1)


def test_the_deployed_net_takes_the_trained_weights(make, tmp_path):
    solver = get_solver(read_solver(make())[0], engine="numpy")
    solver.step(1)
    solver.net.save(tmp_path / "w.caffemodel")
    net = Net(tmp_path / "out/deploy.prototxt", weights=tmp_path / "w.caffemodel", engine="numpy")
    net.forward()
    assert net.blobs["prob"].data.sum() == pytest.approx(1)


def test_more_outputs_than_classes(make):
    net, _ = read_net(make(outputs=7).parent / "train_val.prototxt")
    assert max(layer.convolution_param.num_output for layer in net.layer) == 7


def test_too_few_outputs(make, tmp_path):
    with pytest.raises(UsageError, match="2 output"):
        make(outputs=2)
    assert not (tmp_path / "out").exists()


class TestMeans:
    def with_mean(self, model, shape):
        text = NET.replace("mean_value: 9 crop_size: 8", f'mean_file: "{model}/m.binaryproto"')
        (model / "train_val.prototxt").write_text(text)
        if shape:
            blob = array_to_blob(np.full((1, *shape), 7.0, np.float32))
            (model / "m.binaryproto").write_bytes(blob.SerializeToString())

    def transform(self, make):
        net, _ = read_net(make().parent / "train_val.prototxt")
        return net.layer[0].transform_param

    def test_a_mean_image_that_fits_is_copied(self, make, model, tmp_path):
        self.with_mean(model, (1, 8, 8))
        assert self.transform(make).mean_file == str(tmp_path / "out" / "mean.binaryproto")
        assert (tmp_path / "out" / "mean.binaryproto").exists()

    def test_a_mean_image_of_another_size_becomes_one_value(self, make, model):
        self.with_mean(model, (1, 20, 20))
        assert self.transform(make).mean_value == [7]

    def test_a_missing_mean_image_is_replaced(self, make, model):
        self.with_mean(model, None)
        (value,) = self.transform(make).mean_value
        assert 20 < value < 230


class TestRefusals:
    def test_weights_of_another_net(self, make, model, tmp_path):
        text = (model / "deploy.prototxt").read_text()
        for old, new, message in (
            ("num_output: 4 kernel_size: 3", "num_output: 5 kernel_size: 3", "another net than"),
            ('"conv1" type', '"other" type', "has weights for none of the layers of tiny"),
        ):
            other = tmp_path / "other.prototxt"
            other.write_text(text.replace(old, new))
            Net(other, engine="numpy").save(model / "tiny.caffemodel")
            with pytest.raises(WeightsError, match=message):
                make()
            assert not (tmp_path / "out").exists()

    def test_a_size_that_leaves_several_scores(self, model, photos, tmp_path):
        text = (model / "train_val.prototxt").read_text()
        pooling = "pooling_param { pool: AVE global_pooling: true }"
        assert pooling in text
        (model / "train_val.prototxt").write_text(
            text.replace(pooling, "pooling_param { pool: AVE kernel_size: 6 }")
        )
        origin = read_origin(str(model))
        preparation = choose_preparation(origin, (20, 20))
        with pytest.raises(NetError, match="give another --size"):
            make_folder(tmp_path / "o", origin, find_images(photos), preparation, Recipe())

    def test_a_model_without_weights(self, model):
        (model / "tiny.caffemodel").unlink()
        with pytest.raises(FileError, match=r"readme.md tells how to train it"):
            read_origin(str(model))

    def test_a_model_whose_weights_are_not_downloaded(self, model):
        (model / "tiny.caffemodel").unlink()
        text = README.replace("name:", "caffemodel_url: http://x.example/y\nname:", 1)
        (model / "readme.md").write_text(text)
        with pytest.raises(FileError, match="'protocaffe zoo download tiny' gets it"):
            read_origin(str(model))

    def test_a_downloaded_model_that_would_run_code(self, model):
        path = model / "train_val.prototxt"
        python = (
            'layer { name: "mine" type: "Python" bottom: "conv1" top: "conv1" '
            'python_param { module: "os" layer: "X" } } '
        )
        path.write_text(NET.replace('layer { name: "conv2"', python + 'layer { name: "conv2"'))
        read_origin(str(model))
        (model / ".downloaded").write_text("from somewhere\n")
        with pytest.raises(NetError, match=r"'mine' runs code of module 'os'.*delete"):
            read_origin(str(model))

    def test_weights_that_would_run_code(self, tmp_path):
        net = parse_text(NET, caffe_pb2.NetParameter())
        net.layer[3].type = "Python"
        (tmp_path / "x.caffemodel").write_bytes(net.SerializeToString())
        with pytest.raises(NetError, match="runs code"):
            read_origin(str(tmp_path / "x.caffemodel"))


class TestWeightsAlone:
    def test_layers_that_stood_still_in_the_last_run_learn(self, model):
        text = (model / "deploy.prototxt").read_text()
        still = text.replace("lr_mult: 2", "lr_mult: 0")
        assert still != text
        net = parse_text(still, caffe_pb2.NetParameter())
        net.layer[1].propagate_down.append(False)
        Net(net, engine="numpy").save(model / "still.caffemodel")
        trunk = read_origin(str(model / "still.caffemodel")).trunk
        assert [spec.lr_mult for spec in trunk.layers[0].param] == [1, 1]
        assert not trunk.layers[0].propagate_down

    def test_layers_come_out_of_the_file(self, model):
        origin = read_origin(str(model / "tiny.caffemodel"))
        assert origin.weights == model / "tiny.caffemodel"
        assert origin.shape == (1, 8, 8)
        assert origin.trunk.last == "conv2"

    def test_the_size_must_be_known(self, tmp_path):
        net = parse_text(NET, caffe_pb2.NetParameter())
        for layer in net.layer:
            layer.ClearField("transform_param")
        path = tmp_path / "x.caffemodel"
        blob = array_to_blob(np.zeros((4, 2, 3, 3)))
        net.layer[2].blobs.append(blob)
        path.write_bytes(net.SerializeToString())
        origin = read_origin(str(path))
        with pytest.raises(UsageError, match="--size"):
            choose_preparation(origin)
        preparation = choose_preparation(origin, (9, 9), [1, 2], scale=0.5, mirror=True)
        assert preparation.channels == 2
        assert preparation.stored == preparation.size == (9, 9)
        assert preparation.transform.scale == 0.5
        assert preparation.mirror
        with pytest.raises(UsageError, match="3 mean values for images of 2"):
            choose_preparation(origin, (9, 9), [1, 2, 3])

    def test_weights_without_layers(self, tmp_path):
        net = caffe_pb2.NetParameter()
        net.layer.add(name="conv1").blobs.append(array_to_blob(np.zeros(3)))
        (tmp_path / "x.caffemodel").write_bytes(net.SerializeToString())
        with pytest.raises(FileError, match="not how the layers are joined"):
            read_origin(str(tmp_path / "x.caffemodel"))

    def test_hdf5(self, tmp_path):
        (tmp_path / "x.caffemodel.h5").touch()
        with pytest.raises(FileError, match="hold weights only"):
            read_origin(str(tmp_path / "x.caffemodel.h5"))


def test_the_mean_of_imagenet_is_known():
    preparation = choose_preparation(read_origin("bvlc_alexnet", scratch=True))
    assert preparation.transform.mean_value == [104, 117, 123]
    assert not preparation.own_mean
    assert preparation.transform.crop_size == 227
    assert preparation.options.encode_type == "jpg"
    assert preparation.mirror
