import json
from pathlib import Path

import pytest

from protocaffe.check import check_file
from protocaffe.errors import FileError

GOLDEN = Path(__file__).parents[1] / "golden"
REFUSED = sorted(path.parent for path in GOLDEN.glob("errors/*/meta.json"))
RUNNING = sorted(path.parent for path in GOLDEN.glob("[!e]*/*/net.prototxt"))


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Check files of a temporary folder; return the problems as one line of text each."""
    monkeypatch.chdir(tmp_path)

    def run(text, name="net.prototxt", **options):
        Path(name).write_text(text)
        problems = check_file(name, **options).problems
        return [f"{p.place}: {p.severity}: {p.message}" for p in problems]

    return run


# -- what Caffe refuses, and what it runs ----------------------------------------------------


@pytest.mark.parametrize("folder", REFUSED, ids=lambda folder: folder.name)
def test_what_caffe_refuses_is_an_error(folder, monkeypatch):
    monkeypatch.chdir(folder)
    meta = json.loads(Path("meta.json").read_text())
    name = "solver.prototxt" if Path("solver.prototxt").exists() else "net.prototxt"
    assert check_file(name).errors, meta["caffe_message"]


@pytest.mark.parametrize(
    "folder", RUNNING, ids=lambda folder: f"{folder.parent.name}/{folder.name}"
)
def test_what_caffe_runs_has_no_errors(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = set(folder.iterdir())
    checked = check_file("net.prototxt")
    errors = [p.message for p in checked.problems if p.severity == "error"]
    assert set(folder.iterdir()) == before
    if folder.parent.name in ("assembly", "solvers"):  # nets for one state only
        errors = [each for each in errors if "unknown bottom blob" not in each]
    assert errors == []


# -- nets ------------------------------------------------------------------------------------

DATA = """layer { name: "data" type: "Input" top: "data"
  input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }
"""
LOSS = """layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" }
"""
FC = """layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""


def test_a_good_net_has_no_problems(check):
    assert check(DATA + FC + LOSS) == []


def test_every_problem_is_told_at_once(check):
    found = check(
        DATA
        + """layer { name: "a" type: "Convolution" bottom: "data" top: "a"
  convolution_param { num_outputs: 3 kernel_size: 0 } }
layer { name: "b" type: "Poling" bottom: "a" top: "b" }
layer { name: "c" type: "ReLU" bottom: "dta" top: "c" }
layer { name: "d" type: "Pooling" bottom: "data" top: "d" pooling_param { pool: MAXX } }
layer { name: "e" type: "ReLU" bottom: "c" top: "e" include { } exclude { } }
"""
    )
    assert [each.partition(" (")[0].partition(";")[0] for each in found] == [
        "net.prototxt:4: error: layer 'a'",
        "net.prototxt:5:23: error: unknown field 'num_outputs' in convolution_param",
        "net.prototxt:6: error: layer 'b': unknown layer type 'Poling'",
        "net.prototxt:7: error: layer 'c'",
        "net.prototxt:8: error: layer 'd'",
        "net.prototxt:8:81: error: unknown value MAXX for 'pool'",
        "net.prototxt:9: error: layer 'e'",
    ]


def test_a_layer_is_not_blamed_for_what_is_below_it(check):
    found = check(
        DATA
        + """layer { name: "a" type: "Concat" bottom: "data" bottom: "label" top: "a" }
layer { name: "b" type: "ReLU" bottom: "a" top: "b" }
layer { name: "c" type: "Softmax" bottom: "b" top: "c" }
"""
    )
    assert len(found) == 1
    assert found[0].startswith("net.prototxt:4: error: layer 'a' (Concat): all bottoms need one")


def test_blobs_are_called_as_they_are_written(check):
    twice = FC + LOSS.replace('"label"', '"data"') + LOSS.replace('bottom: "label"', 'bottom: "fc"')
    errors = [each for each in check(DATA + twice) if " error: " in each]
    assert [each.partition("; blob ")[2][:16] for each in errors] == [
        "'data' has shape",
        "'fc' has shape (2"[:16],
    ]


def test_missing_files_and_what_follows_from_assumed_shapes(check):
    found = check(
        """layer { name: "data" type: "Data" top: "data" top: "label"
  transform_param { crop_size: 8 mean_file: "mean" } data_param { source: "db" batch_size: 4 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 2 kernel_size: 9 } }
layer { name: "h" type: "HDF5Data" top: "h" hdf5_data_param { source: "list" batch_size: 1 } }
"""
    )
    data = "net.prototxt:1: error: layer 'data' (Data): "
    assert found[0].startswith(data + "data_param.source: no such file or folder: 'db' (paths are")
    assert found[1].startswith(data + "transform_param.mean_file: no such file or folder: 'mean'")
    assert found[2].startswith("net.prototxt:3: error: layer 'conv' (Convolution): the output")
    assert found[3].startswith("net.prototxt:5: error: layer 'h' (HDF5Data): hdf5_data_param.sour")
    assert len(found) == 4


@pytest.mark.parametrize(
    ("layers", "line", "warning"),
    [
        (
            'layer { name: "x" type: "ReLU" bottom: "data" top: "x" pooling_param { stride: 2 } }',
            4,
            "layer 'x' (ReLU): pooling_param has no effect on a layer of this type",
        ),
        (
            FC + 'layer { name: "x" type: "ReLU" bottom: "fc" top: "x" }\n'
            'layer { name: "y" type: "TanH" bottom: "x" top: "y" }' + LOSS,
            7,
            "layer 'y' (TanH): nobody reads blob 'y', so these layers work for nothing, too: x",
        ),
        (
            FC.replace('weight_filler { type: "xavier" }', "") + LOSS,
            4,
            "layer 'fc' (InnerProduct): has no weight_filler",
        ),
        (
            'layer { name: "data" type: "ReLU" bottom: "data" top: "x" }',
            1,
            "layer 'data' (Input): 2 layers have this name",
        ),
        (
            'layer { name: "x" type: "ReLU" bottom: "data" top: "x" include { stage: "s" } }',
            4,
            "layer 'x' (ReLU): is in no net that was checked (TRAIN and TEST) because of include {",
        ),
        (
            """layer { name: "x" type: "Data" top: "x" transform_param { crop_size: 4 mirror: true }
            data_param { source: "." batch_size: 1 scale: 2 } include { phase: TEST } }""",
            4,
            "layer 'x' (Data): scale in data_param has no effect; move it to transform_param",
        ),
        (
            'layer { name: "x" type: "Data" top: "x" data_param { source: "." rand_skip: 2 } }',
            4,
            "layer 'x' (Data): rand_skip in data_param has no effect",
        ),
        (
            """layer { name: "x" type: "WindowData" top: "x" top: "y"
            transform_param { scale: 2 crop_size: 4 } window_data_param { source: "no" } }""",
            4,
            "layer 'x' (WindowData): scale in transform_param has no effect; move it to window_da",
        ),
        (
            """layer { name: "x" type: "Data" top: "x" transform_param { crop_size: 4 mirror: true }
            data_param { source: "." batch_size: 1 } include { phase: TEST } }""",
            4,
            "layer 'x' (Data): mirror: true mirrors at random in phase TEST, too",
        ),
    ],
)
def test_warnings(check, layers, line, warning):
    found = check(DATA + layers)
    assert any(f"net.prototxt:{line}: warning: {warning}" in each for each in found), found


def test_a_warning_that_is_answered_goes(check):
    stage = 'layer { name: "x" type: "ReLU" bottom: "data" top: "x" include { stage: "s" } }'
    assert check(DATA + stage, stages=["s"]) == []
    silence = 'layer { name: "s" type: "Silence" bottom: "x" }'
    layers = FC + 'layer { name: "x" type: "ReLU" bottom: "data" top: "x" }' + LOSS
    assert len(check(DATA + layers)) == 1
    assert check(DATA + layers + silence) == []


def test_phases(check, tmp_path):
    text = DATA + 'layer { name: "x" type: "ReLU" bottom: "y" top: "x" include { phase: TEST } }'
    check(text)
    (problem,) = check_file("net.prototxt").problems
    assert problem.phases == ["TEST"]
    check(text.replace("include { phase: TEST }", ""))
    (problem,) = check_file("net.prototxt").problems
    assert problem.phases == ["TRAIN", "TEST"]


def test_a_net_of_one_phase_is_checked_in_that_only(check):
    rule = "include { phase: TRAIN } }"
    layers = DATA.replace("} }\nlayer", "} " + rule + "\nlayer").replace(
        "dim: 2 } } }", "dim: 2 } } " + rule
    )
    assert check(layers) == []


def test_old_formats(check):
    found = check(
        """layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1
  convolution_param { num_output: 2 kernel_size: 9 } }
input: "data" input_dim: 1 input_dim: 1 input_dim: 8 input_dim: 8
"""
    )
    assert len(found) == 1
    assert found[0].startswith("net.prototxt:1: error: layer 'c' (Convolution): the output would")


def test_nothing_is_written(check, tmp_path):
    found = check(
        DATA
        + """layer { name: "save" type: "HDF5Output" bottom: "data" bottom: "label"
            hdf5_output_param { file_name: "out.h5" } }"""
    )
    assert found == []
    assert [path.name for path in tmp_path.iterdir()] == ["net.prototxt"]


def test_a_file_that_is_not_there(check):
    check(DATA)
    with pytest.raises(FileError, match=r"did you mean 'net\.prototxt'"):
        check_file("nt.prototxt")


# -- solvers ---------------------------------------------------------------------------------

SOLVER = """net: "net.prototxt"
base_lr: 0.1
lr_policy: "fixed"
max_iter: 10
"""


def settings(old="", new=""):
    assert old in SOLVER
    return SOLVER.replace(old, new) if old else SOLVER + new


@pytest.fixture
def check_solver(check):
    check(DATA + FC + LOSS)
    return lambda text: check(text, "solver.prototxt")


def test_a_good_solver_has_no_problems(check_solver):
    assert check_solver(SOLVER) == []
    assert check_solver(SOLVER + "test_iter: 1 test_interval: 5") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (settings('"fixed"', '"fixd"'), "3: error: unknown learning rate policy 'fixd'; did you"),
        (settings("base_lr: 0.1\n"), " warning: base_lr is missing"),
        (
            settings('"fixed"', '"step" stepsize: 5'),
            "3: warning: lr_policy 'step' lacks gamma, so the rate falls to 0 at the first step",
        ),
        (settings('"fixed"', '"step" gamma: 1'), "3: error: lr_policy 'step' needs the field step"),
        (settings("", "gamma: 1"), "5: warning: gamma has no effect with lr_policy 'fixed'"),
        (settings("", "stepvalue: 3"), "5: warning: stepvalue has no effect"),
        (settings('"fixed"', '"multistep" gamma: 1'), "3: warning: without stepvalue"),
        (
            settings('"fixed"', '"multistep" gamma: 1 stepvalue: 9 stepvalue: 3'),
            "3: warning: stepvalue should rise, got 9, 3",
        ),
        (
            settings('"fixed"', '"step" gamma: 1 stepsize: 50'),
            "3: warning: stepsize 50 is never reached in max_iter 10",
        ),
        (settings("max_iter: 10\n"), " warning: max_iter is 0, so nothing will be trained"),
        (settings("", "test_iter: 1"), "error: there are test nets, so test_interval must be"),
        (settings("", "test_interval: 1"), "5: warning: test_interval has no effect without"),
        (
            settings("", "test_iter: -1 test_interval: 1"),
            "5: error: test_iter must not be negative",
        ),
        (
            settings("", 'test_net: "net.prototxt" test_interval: 1'),
            "error: test_iter must be given once per test net: 0 test_iter for 1 test net(s)",
        ),
        (settings("", 'snapshot: 1 snapshot_prefix: "no/x"'), "5: error: there is no folder 'no'"),
        (settings("", 'weights: "a,b"'), "5: error: no such file: 'b'"),
        (settings("", 'type: "AdaGard"'), "5: error: unknown solver type 'AdaGard'; did you mean"),
        (settings("", 'type: "AdaGrad" momentum: 0.9'), "5: error: solver type AdaGrad has no mom"),
        (settings("", "momentum: 1.5"), "5: warning: momentum is 1.5; from 0 to below 1"),
        (settings("", "iter_size: 0"), "5: error: iter_size must be at least 1, got 0"),
        (settings("", "snapshot_after_train: false"), "5: warning: there is no snapshot"),
        (settings("", "momentun: 1"), "5:1: error: unknown field 'momentun'"),
        (settings('"net.', '"nte.'), "1: error: net: nte.prototxt: no such file; did you mean"),
        (settings("", 'train_net: "net.prototxt"'), "5: error: exactly one of net, net_param"),
        (settings("", 'solver_type: SGD type: "SGD"'), "error: the solver has both 'type' and"),
    ],
)
def test_solver_problems(check_solver, text, problem):
    found = check_solver(text)
    assert any(each.startswith(f"solver.prototxt:{problem}") for each in found) or any(
        problem in each for each in found
    ), found


def test_problems_of_a_solvers_nets_and_their_states(check, check_solver):
    check(DATA + FC.replace("data", "dta") + LOSS)
    found = check_solver(SOLVER + "test_iter: 1 test_interval: 5")
    assert [each.partition("'fc'")[0] for each in found] == ["net.prototxt:4: error: layer "]
    rule = FC.replace("inner_product_param", 'include { stage: "s" } inner_product_param')
    check(DATA + rule + LOSS)
    assert any("unknown bottom blob 'fc'" in each for each in check_solver(SOLVER))
    assert check_solver(SOLVER + 'train_state { stage: "s" }') == []


def test_a_net_inside_the_solver(check):
    net = "net_param { " + DATA + FC.replace("num_output: 5", "num_output: 0") + LOSS + "}"
    found = check(net + SOLVER.partition("\n")[2], "solver.prototxt")
    assert len(found) == 1
    assert found[0].startswith("solver.prototxt:4: error: layer 'fc' (InnerProduct): num_output")


def test_a_net_beside_the_solver_is_pointed_at(check, tmp_path, monkeypatch):
    check(DATA + FC + LOSS)
    check(SOLVER, "solver.prototxt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (problem, *_) = check_file("../solver.prototxt").problems
    assert "; it is there from '..'" in problem.message


def test_what_does_not_depend_on_a_mistake_is_told_with_it(check):
    found = check(
        DATA
        + """layer { name: "odd" type: "Convolutoin" bottom: "data" top: "odd" }
layer { name: "next" type: "InnerProduct" bottom: "odd" top: "next"
  inner_product_param { num_output: 3 weight_filler { type: "xaver" } } }
"""
        + FC
        + LOSS
    )
    assert [each.partition(": layer")[0] for each in found] == [
        "net.prototxt:4: error",
        "net.prototxt:5: error",
        "net.prototxt:5: warning",
    ]
    assert "did you mean 'Convolution'?" in found[0]
    assert "unknown filler 'xaver'; did you mean 'xavier'?" in found[1]
    assert "nobody reads blob 'next'" in found[2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('type: "Adm" lr_policy: "fixd"', "unknown learning rate policy 'fixd'"),
        ('type: "Nesterov" rms_decay: 0.9', "rms_decay has no effect on solver type Nesterov"),
        ('type: "RMSProp" delta: 1 momentum2: 0.9', "momentum2 has no effect"),
    ],
)
def test_settings_of_update_rules(check, text, problem):
    check(DATA + FC + LOSS)
    assert any(problem in each for each in check(f'net: "net.prototxt" {text}', "s.prototxt"))
