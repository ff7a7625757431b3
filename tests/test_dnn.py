import subprocess
import sys

import cv2
import numpy as np
import pytest

from protocaffe import dnn
from protocaffe.errors import (
    FileError,
    LayerError,
    NetError,
    ProtocaffeError,
    TextError,
    UsageError,
    WeightsError,
)
from tests.opencv.nets import FOLDER, NAMES, WRONG, load, save_weights

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
IMPORTER = pytest.mark.skipif(
    not hasattr(cv2.dnn, "readNetFromCaffe"),
    reason=f"OpenCV {cv2.__version__} has no Caffe importer; its numbers are recorded",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Path of a net's caffemodel."""
    folder = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        save_weights(name, folder / f"{name}.caffemodel")
    return lambda name: folder / f"{name}.caffemodel"


@pytest.fixture
def old(weights):
    return load(dnn, "old", weights("old"))


@pytest.fixture
def mixed(weights):
    return load(dnn, "mixed", weights("mixed"))


def recorded(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


# -- numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_has_the_recorded_numbers(name, weights):
    net, expected = load(dnn, name, weights(name)), recorded(name)
    last = net.forward()
    assert (last.dtype, last.flags.owndata) == (np.float32, True)
    np.testing.assert_allclose(last, expected["last"], **TOLERANCE)
    names = net.getLayerNames()
    assert names == tuple(expected["layers"])
    assert net.getUnconnectedOutLayersNames() == tuple(expected["ends"])
    together = net.forward(names)
    assert isinstance(together, tuple)
    for layer, values in zip(names, together, strict=True):
        if layer in WRONG:
            continue
        wanted = expected[f"forward/{layer}"]
        for found in (values, net.forward(layer)):
            np.testing.assert_allclose(found, wanted, **TOLERANCE, strict=True, err_msg=layer)


@pytest.mark.parametrize("name", NAMES)
@IMPORTER
def test_every_layer_has_the_numbers_of_this_opencv(name, weights):
    ours, theirs = (load(module, name, weights(name)) for module in (dnn, cv2.dnn))
    names = theirs.getLayerNames()
    assert ours.getLayerNames() == names
    assert [ours.getLayerId(each) for each in (*names, "none")] == [
        theirs.getLayerId(each) for each in (*names, "none")
    ]
    np.testing.assert_array_equal(
        ours.getUnconnectedOutLayers(), theirs.getUnconnectedOutLayers(), strict=True
    )
    for layer in set(names).difference(WRONG):
        np.testing.assert_allclose(
            ours.forward(layer), theirs.forward(layer), **TOLERANCE, strict=True, err_msg=layer
        )


def test_a_whole_pass_and_its_ends_give_the_same(mixed):
    ends = mixed.getUnconnectedOutLayersNames()
    first = mixed.forward(ends)
    mixed.forward("stem")  # runs a part of the net, layer by layer
    for one, other in zip(first, mixed.forward(ends), strict=True):
        np.testing.assert_allclose(one, other, **TOLERANCE)


def test_results_do_not_change_with_the_next_pass(old):
    first = old.forward()
    before = first.copy()
    old.setInput(np.ones((1, 1, 12, 12), np.float32))
    assert old.forward().shape == (1, 5)
    np.testing.assert_array_equal(first, before)


def test_layers_before_work_in_place_are_seen(mixed):
    before, after = mixed.forward(["stem", "stem/relu"])
    assert before.min() < 0 <= after.min()


def test_layers_are_also_known_by_their_own_name_and_by_blobs(mixed):
    np.testing.assert_array_equal(mixed.forward("stem"), mixed.forward("c"))
    one, two = mixed.forward(["one", "two"])
    assert one.shape == two.shape
    assert np.any(one != two)
    np.testing.assert_array_equal(mixed.forward("parts"), one)


def test_layers_tell_what_they_are(old):
    inputs = old.getLayer(0)
    assert (inputs.name, inputs.type, inputs.blobs) == ("_input", "", ())
    assert inputs.outputNameToIndex("data") == 0
    assert inputs.outputNameToIndex("im_info") == -1
    first = old.getLayer("conv1")
    assert (first.name, first.type) == ("conv1", "Convolution")
    assert first.blobs[0].shape == old.net.params["conv1"][0].shape
    for name in old.getLayerNames():
        assert old.getLayer(old.getLayerId(name)).name == old.getLayer(name).name == name
    with pytest.raises(UsageError, match="no layer 99; expected 0 to"):
        old.getLayer(99)
    with pytest.raises(UsageError, match="no layer 'conv2'; did you mean"):
        old.getLayer("conv2")


def test_inputs_are_scaled_as_opencv_does(old):
    image = np.arange(144).reshape(1, 1, 12, 12)
    old.setInput(image.astype(np.uint8), "data", 0.5, 10)
    np.testing.assert_array_equal(old.net.blobs["data"].data, (image - 10) * 0.5)
    old.setInput(image, mean=(10, 0, 0, 0))
    np.testing.assert_array_equal(old.net.blobs["data"].data, image - 10)


def test_mean_per_channel(mixed):
    values = np.random.default_rng(0).random((2, 4, 17, 19)).astype(np.float32)
    mixed.setInput(values, "data", 2, (1, 2, 3, 4))
    expected = (values - np.array([1, 2, 3, 4], np.float32).reshape(4, 1, 1)) * 2
    np.testing.assert_allclose(mixed.net.blobs["data"].data, expected, rtol=1e-6)


# -- reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: np.frombuffer(data, np.uint8)])
def test_contents_instead_of_paths(kind, old, weights):
    text, model = FOLDER / "old.prototxt", weights("old")
    net = dnn.readNetFromCaffe(kind(text.read_bytes()), kind(model.read_bytes()))
    net.setInput(old.net.blobs["data"].data)
    np.testing.assert_array_equal(net.forward(), old.forward())


def test_read_net_takes_either_order(weights):
    text, model = FOLDER / "old.prototxt", weights("old")
    for paths in ((text, model), (model, text), (str(model), str(text), "Caffe")):
        assert dnn.readNet(*paths).getLayerNames()[0] == "conv1"
    with pytest.raises(UsageError, match="a Caffe net needs its prototxt, too"):
        dnn.readNet(model)


def test_read_net_without_known_endings(tmp_path, weights):
    text, model = tmp_path / "net.txt", tmp_path / "net.bin"
    text.write_bytes((FOLDER / "old.prototxt").read_bytes())
    model.write_bytes(weights("old").read_bytes())
    assert dnn.readNet(model, text, "caffe").getLayerNames()[0] == "conv1"


def test_other_formats_are_left_to_opencv():
    with pytest.raises(cv2.error, match=r"none\.onnx"):
        dnn.readNet("none.onnx")


def test_the_rest_is_opencv_s():
    assert dnn.blobFromImage is cv2.dnn.blobFromImage
    assert dnn.NMSBoxes is cv2.dnn.NMSBoxes
    assert dnn.DNN_TARGET_CPU == cv2.dnn.DNN_TARGET_CPU
    with pytest.raises(AttributeError, match=r"neither protocaffe\.dnn nor cv2\.dnn has 'blobs'"):
        _ = dnn.blobs
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    blob = dnn.blobFromImage(image, 0.5, (8, 6), (1, 2, 3), swapRB=True)
    expected = (image[:, :, ::-1].astype(np.float32) - [1, 2, 3]).transpose(2, 0, 1)[None] * 0.5
    np.testing.assert_allclose(blob, expected)


def test_importing_it_does_not_import_opencv():
    code = "import sys; import protocaffe.dnn; sys.exit('cv2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- what a net tells --------------------------------------------------------------------


def test_perf_profile(old):
    assert old.getPerfProfile()[0] == 0
    old.forward()
    total, ticks = old.getPerfProfile()
    assert ticks.shape == (len(old.getLayerNames()),)
    assert 0 < ticks.sum() <= total


def test_what_opencv_can_be_told_changes_nothing(old):
    before = old.forward()
    old.setPreferableBackend(dnn.DNN_BACKEND_OPENCV)
    old.setPreferableTarget(dnn.DNN_TARGET_CPU)
    old.enableFusion(False)
    old.enableWinograd(False)
    assert not old.empty()
    np.testing.assert_array_equal(old.forward(), before)


# -- mistakes ----------------------------------------------------------------------------


def test_inputs_that_were_never_set(weights):
    net = dnn.readNetFromCaffe(str(FOLDER / "mixed.prototxt"), str(weights("mixed")))
    net.setInput(np.zeros((1, 4, 17, 19), np.float32), "data")
    with pytest.raises(NetError, match="input 'side' was never set"):
        net.forward()


def test_inputs_that_do_not_fit(old):
    image = np.zeros((1, 1, 12, 12), np.float32)
    for arguments, message in [
        ((image, "dta"), r"no input 'dta'; did you mean 'data'\? \(it has: data\)"),
        ((image[0],), r"needs 4 axes, like \(2, 1, 12, 12\); got shape \(1, 12, 12\)"),
        ((image[:0],), r"got shape \(0, 1, 12, 12\)"),
        ((image, "", 1, (1, 2)), "one value or one per channel, 1; got 2"),
    ]:
        with pytest.raises(UsageError, match=message):
            old.setInput(*arguments)
    old.setInput(image[:, [0, 0]])
    with pytest.raises(LayerError, match=r"layer 'conv1' .*2, 12, 12"):
        old.forward()
    old.setInput(image)
    assert old.forward().shape == (1, 5)


def test_names_that_are_not_there(old):
    with pytest.raises(UsageError, match=r"no layer 'conv2'; did you mean 'conv1'\? \(it has: con"):
        old.forward("conv2")
    with pytest.raises(UsageError, match="no layer 'pol1'"):
        old.forward(["prob", "pol1"])


def test_layers_without_output():
    text = b'input: "x" input_dim: [1, 1, 2, 2] layer { name: "s" type: "Silence" bottom: "x" }'
    net = dnn.readNetFromCaffe(text)
    net.setInput(np.zeros((1, 1, 2, 2)))
    with pytest.raises(UsageError, match="layer 's' has no output"):
        net.forward()


def test_files_that_do_not_fit(tmp_path, weights):
    text, model = FOLDER / "old.prototxt", weights("old")
    content = model.read_bytes()
    for arguments, kind, message in [
        (("oldd.prototxt",), FileError, r"oldd\.prototxt: no such file"),
        ((text, "old.caffemodell"), FileError, r"old\.caffemodell: no such file"),
        ((model, text), FileError, "expected a text file"),
        ((text, weights("mixed")), WeightsError, "has no weights for the layer.* conv1, ip1"),
        ((text, content[:-9]), FileError, "^caffeModel: .*cut short"),
        ((b"layer { nam: 'x' }",), TextError, "prototxt:1:9: unknown field 'nam'"),
    ]:
        with pytest.raises(ProtocaffeError, match=message) as caught:
            dnn.readNetFromCaffe(*arguments)
        assert caught.type is kind
