import subprocess
import sys

import numpy as np
import pytest

from protocaffe import draw
from protocaffe.cli import main
from protocaffe.errors import NetError, SolverError
from protocaffe.layers import Layer
from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text, read_net
from protocaffe.solvers import get_solver

MODULE = """
import json

import numpy as np

from protocaffe import Layer


class Affine(Layer):
    def setup(self, bottom, top):
        self.factor = json.loads(self.param_str)["factor"]
        self.blobs.add_blob(bottom[0].shape[1])

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.factor * bottom[0].data + self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        self.blobs[0].diff[...] += top[0].diff.sum(axis=0)
        if propagate_down[0]:
            bottom[0].diff[...] = self.factor * top[0].diff


class SquaredLoss(Layer):
    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise ValueError("the two differ in size")
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.difference = bottom[0].data - bottom[1].data
        top[0].data[...] = (self.difference**2).sum() / 2

    def backward(self, top, propagate_down, bottom):
        for blob, wanted, sign in zip(bottom, propagate_down, (1, -1)):
            if wanted:
                blob.diff[...] = sign * top[0].diff * self.difference


class Growing(Layer):
    '''Gives one row more in every forward.'''

    rows = 0

    def reshape(self, bottom, top):
        self.rows += 1
        top[0].reshape(self.rows, 2)

    def forward(self, bottom, top):
        top[0].data[...] = self.phase


class Proposing(Layer):
    '''Reshapes to and fro, as the proposal layers of detectors do.'''

    def setup(self, bottom, top):
        self.rows = [3, 3, 3, 2, 2, 4, 4]

    def reshape(self, bottom, top):
        top[0].reshape(1, 5)

    def forward(self, bottom, top):
        rows = self.rows.pop(0)
        top[0].reshape(rows, 5)
        top[0].data[...] = np.arange(5 * rows).reshape(rows, 5) + bottom[0].data.sum()

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff.sum()


class Refusing(Growing):
    def setup(self, bottom, top):
        raise self.error("give it another top")


class Failing(Layer):
    def reshape(self, bottom, top):
        top[0].reshape(1)

    def forward(self, bottom, top):
        return 1 / 0

    def backward(self, top, propagate_down, bottom):
        {}["key"]


class Careless(Layer):
    def reshape(self, bottom, top):
        top[0].reshape(-1)

    def forward(self, bottom, top):
        pass


class Incomplete(Layer):
    def setup(self, bottom, top):
        pass


class Stacking(Growing):
    def forward(self, bottom, top):
        np.stack([])


class Bare:
    pass
"""


def python_layer(name, tops="y", bottoms=("x",), module="my_layers", extra="", param_str=""):
    wires = " ".join([*(f'bottom: "{each}"' for each in bottoms), f'top: "{tops}"'])
    return (
        f'layer {{ name: "{name}" type: "Python" {wires} {extra} python_param {{ '
        f'module: "{module}" layer: "{name}" param_str: \'{param_str}\' }} }}'
    )


def make_net(*layers, shape=(2, 3), **options):
    dims = " ".join(f"dim: {extent}" for extent in shape)
    shapes = f"input_param {{ shape {{ {dims} }} }}"
    text = f'layer {{ name: "in" type: "Input" top: "x" top: "t" {shapes} }}'
    net = parse_text("\n".join([text, *layers]), caffe_pb2.NetParameter())
    return Net(net, seed=1, **options)


@pytest.fixture(autouse=True)
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_layers", None)


@pytest.mark.parametrize("engine", ["numpy", None])
def test_layer_computes_learns_and_hands_gradients_down(engine):
    net = make_net(
        python_layer("Affine", param_str='{"factor": 3}'),
        python_layer("SquaredLoss", "loss", ("y", "t"), extra="loss_weight: 2"),
        engine=engine,
    )
    x, t = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    net.blobs["x"].data[...], net.blobs["t"].data[...] = x, t
    net.params["Affine"][0].data[...] = (1, 2, 3)
    y = 3 * x + (1, 2, 3)
    assert net.run_forward() == pytest.approx(((y - t) ** 2).sum())
    np.testing.assert_allclose(net.blobs["y"].data, y)
    net.backward()
    np.testing.assert_allclose(net.params["Affine"][0].diff, 2 * (y - t).sum(axis=0))


def test_layer_trains_and_is_stored(user_module):
    (user_module / "net.prototxt").write_text(
        """layer { name: "d" type: "DummyData" top: "x" top: "t" dummy_data_param {
             shape { dim: 2 dim: 3 } data_filler { value: 1 } data_filler { value: 5 } } }"""
        + python_layer("Affine", param_str='{"factor": 3}')
        + python_layer("SquaredLoss", "loss", ("y", "t"), extra="loss_weight: 1")
    )
    (user_module / "solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.5 lr_policy: "fixed" max_iter: 3 snapshot_prefix: "s"'
    )
    solver = get_solver(user_module / "solver.prototxt")
    solver.solve()
    assert solver.smoothed_loss == pytest.approx(0, abs=1e-6)
    trained = Net("net.prototxt", weights="s_iter_3.caffemodel")
    np.testing.assert_allclose(trained.params["Affine"][0].data, 2)


def test_reshape_runs_before_each_forward_and_the_net_follows():
    net = make_net(
        python_layer("Growing", extra="loss_weight: 1"),
        'layer { name: "z" type: "Power" bottom: "y" top: "z" power_param { shift: 1 } }',
        phase=caffe_pb2.TEST,
    )
    rows = net.blobs["z"].shape[0]
    for _ in range(2):
        loss = net.run_forward()
        assert net.blobs["z"].shape[0] > rows
        rows = net.blobs["z"].shape[0]
        assert net.blobs["y"].shape == net.blobs["z"].shape == (rows, 2)
        assert (net.blobs["z"].data == 2).all()
        assert loss == 2 * rows


@pytest.mark.parametrize("engine", ["numpy", None])
def test_tops_may_be_reshaped_to_and_fro_in_every_pass(engine):
    products = [
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f'inner_product_param {{ num_output: {size} weight_filler {{ type: "xavier" }} }} }}'
        for name, bottom, size in (("a", "y", 4), ("b", "a", 2))
    ]
    net = make_net("force_backward: true", python_layer("Proposing"), *products, engine=engine)
    kept = net.blobs["y"].diff
    for round_number, rows in enumerate([3, 3, 3, 2, 2, 4, 4]):
        net.clear_param_diffs()
        result = net.forward(x=np.full((2, 3), round_number), t=np.zeros((2, 3)))["b"]
        rois = np.arange(5 * rows).reshape(rows, 5) + 6 * round_number
        (a, _), (b, _) = net.params["a"], net.params["b"]
        np.testing.assert_allclose(result, rois @ a.data.T @ b.data.T, rtol=1e-4, atol=1e-4)
        gradient = net.backward(b=np.ones((rows, 2)), t=np.zeros((2, 3)))["x"]
        expected = np.ones((rows, 2)) @ b.data @ a.data
        np.testing.assert_allclose(gradient, np.full((2, 3), expected.sum()), rtol=1e-4)
        np.testing.assert_allclose(a.diff, (np.ones((rows, 2)) @ b.data).T @ rois, rtol=1e-4)
        if round_number in (1, 2):
            np.testing.assert_allclose(kept, expected, rtol=1e-4)
        kept = net.blobs["y"].diff


def test_loss_counts_all_of_a_top_that_grew():
    net = make_net(python_layer("Growing", extra="loss_weight: 3"), phase=caffe_pb2.TEST)
    for _ in range(2):
        loss = net.run_forward()
        assert loss == 3 * net.blobs["y"].count


def test_any_class_of_layers_can_be_named(user_module):
    layer = python_layer("ReLU", module="protocaffe.layers.activation")
    net = make_net(layer)
    net.blobs["x"].data[...] = -1
    net.run_forward()
    assert (net.blobs["y"].data == 0).all()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (python_layer("Affin"), "has no class 'Affin'; did you mean 'Affine'?"),
        (python_layer("Bare"), "is not a class derived from protocaffe.Layer"),
        (python_layer("json"), "is not a class derived from protocaffe.Layer"),
        (python_layer("Affine", module="my_layer"), "no module 'my_layer' where Python looks"),
        (python_layer("A", module="my.layers"), "no module 'my' where Python looks"),
        (python_layer("A", module=""), "python_param needs a module and a layer"),
        (python_layer("A", module="broken"), r"broken failed at .*broken\.py:1: SyntaxError"),
        (python_layer("Incomplete"), "class 'Incomplete' .* has no method reshape and no forward"),
        (python_layer("A", module="__main__"), r"module __main__ \(.*\) has no class 'A'"),
        (python_layer("Careless"), r"reshape failed at .*my_layers\.py:\d+: .* cannot be negative"),
        (python_layer("A", module="lacking"), "failed at .*No module named 'no_such_package'"),
        (python_layer("Affine"), "setup failed at .*JSONDecodeError"),
    ],
)
def test_what_a_person_gets_wrong(user_module, layer, message):
    (user_module / "broken.py").write_text("class A(:\n")
    (user_module / "lacking.py").write_text("import no_such_package\n")
    with pytest.raises(NetError, match=message) as caught:
        make_net(layer)
    assert "layer '" in str(caught.value)


def test_errors_inside_name_the_layer_and_the_line():
    line = 1 + MODULE.splitlines().index("        return 1 / 0")
    net = make_net(python_layer("Failing", extra="loss_weight: 1"), engine="numpy")
    with pytest.raises(NetError) as caught:
        net.run_forward()
    message = str(caught.value)
    assert "layer 'Failing' (Python): forward failed at" in message
    assert message.endswith(f"my_layers.py:{line}: ZeroDivisionError: division by zero")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_errors_in_libraries_name_the_line_that_called_them():
    line = 1 + MODULE.splitlines().index("        np.stack([])")
    net = make_net(python_layer("Stacking"), engine="numpy")
    with pytest.raises(NetError, match=rf"forward failed at .*my_layers.py:{line}: ValueError"):
        net.run_forward()


def test_errors_in_backward_are_told_the_same_way():
    layer = make_net(python_layer("Failing")).layers[-1]
    with pytest.raises(NetError, match=r"backward failed at .*my_layers.py:\d+: KeyError: 'key'"):
        layer.backward([], [], [])


def test_errors_that_the_layer_words_itself_stay_as_they_are():
    with pytest.raises(NetError, match=r"^layer 'Refusing' \(Python\): give it another top$"):
        make_net(python_layer("Refusing"))


def test_package_offers_layer_without_importing_it_first():
    program = (
        "import sys, protocaffe\n"
        "assert 'numpy' not in sys.modules\n"
        "from protocaffe import Layer\n"
        "from protocaffe.layers import Layer as Same\n"
        "assert Layer is Same\n"
        "assert not hasattr(protocaffe, 'Lair')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


OWN_NAMES = """
import numpy as np

import protocaffe as caffe


class Selfish(caffe.Layer):
    '''Uses for itself what a layer has of its own, as classes for pycaffe may.'''

    def setup(self, bottom, top):
        self.name, self.param, self.error = "mine", {"n": 1}, 0.0
        self.rng = np.random.RandomState(0)
        self.dtype, self.phase = "float", "testing"
        self.parameter = self.param_str_

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)
        self.top = top[0].data

    def forward(self, bottom, top):
        assert (self.name, self.param, self.dtype) == ("mine", {"n": 1}, "float")
        self.error += 1
        self.top[...] = bottom[0].data * self.error + self.rng.uniform(0, 1) * 0

    def backward(self, top, propagate_down, bottom):
        pass

    def count(self):
        return self.parameter
"""


@pytest.mark.parametrize("engine", ["numpy", None])
def test_a_class_may_use_any_attribute_for_itself(user_module, engine, tmp_path):
    (user_module / "own_names.py").write_text(OWN_NAMES)
    net = make_net(python_layer("Selfish", module="own_names", param_str="7"), engine=engine)
    for expected in (1, 2, 3):
        result = net.forward(x=np.ones((2, 3)), t=np.ones((2, 3)))["y"]
        assert (result == expected).all()
    layer = net.layer_dict["Selfish"]
    assert (layer.name, layer.count()) == ("Selfish", "7")
    net.get_state()
    net.save(tmp_path / "it.caffemodel")


def test_a_class_of_the_program_itself(monkeypatch):
    class Inline(Layer):
        def reshape(self, bottom, top):
            top[0].reshape(1)

        def forward(self, bottom, top):
            top[0].data[...] = 5

    monkeypatch.setattr(sys.modules["__main__"], "Inline", Inline, raising=False)
    assert make_net(python_layer("Inline", module="__main__")).forward()["y"] == 5


@pytest.fixture
def downloaded(user_module):
    """A downloaded net whose code leaves a trace when it is run."""
    folder = user_module / "gist"
    folder.mkdir()
    (folder / ".downloaded").write_text("https://example.com/gist")
    (user_module / "my_layers.py").write_text(MODULE + "\nopen('trace', 'w').close()\n")
    path = folder / "net.prototxt"
    path.write_text('layer { name: "in" type: "Input" top: "x" }\n' + python_layer("Growing"))
    yield path
    assert not (user_module / "trace").exists()


def test_a_downloaded_net_runs_no_code(user_module, downloaded):
    message = r"net.prototxt:2.*my_layers.*downloaded.*delete that file"
    with pytest.raises(NetError, match=message):
        Net(downloaded)
    below = downloaded.parent / "nets" / "net.prototxt"
    below.parent.mkdir()
    link = user_module / "net.prototxt"
    link.symlink_to(downloaded)
    below.write_text(downloaded.read_text())
    for path in (below, link):
        with pytest.raises(NetError, match=message):
            Net(path)


def test_a_net_within_a_downloaded_solver_runs_no_code(downloaded):
    solver = downloaded.with_name("solver.prototxt")
    settings = 'base_lr: 1 lr_policy: "fixed"'
    solver.write_text(f"net_param {{ {downloaded.read_text()} }} {settings}")
    with pytest.raises(SolverError, match=r"Python layers.*downloaded.*delete that file"):
        get_solver(solver)
    solver.write_text(f'net: "{downloaded}" {settings}')
    with pytest.raises(NetError, match="downloaded"):
        get_solver(solver)


def test_drawing_and_checking_what_was_downloaded_runs_no_code(downloaded, user_module, capsys):
    picture = user_module / "net.dot"
    assert main(["draw", str(downloaded), str(picture)]) == 0
    assert "Growing" in picture.read_text()
    assert main(["check", str(downloaded)]) == 1
    assert main(["summary", str(downloaded)]) == 1
    assert "downloaded" in capsys.readouterr().err
    draw.draw_net(read_net(downloaded)[0], ext="dot")  # where it comes from is not known here


def test_a_net_whose_code_was_read_runs(user_module, downloaded):
    (downloaded.parent / ".downloaded").unlink()
    net = Net(downloaded)
    assert net.layers[-1].rows
    (user_module / "trace").unlink()
