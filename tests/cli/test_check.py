import json

NET = """layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "x" type: "ReLU" bottom: "data" top: "x" %s }
"""
UNUSED = "pooling_param { stride: 2 }"


def test_a_good_net(run_protocaffe, tmp_path):
    (tmp_path / "net.prototxt").write_text(NET % "")
    done = run_protocaffe("check", "net.prototxt")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "net.prototxt: this net is fine\n",
        "",
    )


def test_warnings_do_not_change_the_exit_code(run_protocaffe, tmp_path):
    (tmp_path / "net.prototxt").write_text(NET % UNUSED)
    done = run_protocaffe("check", "net.prototxt")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "net.prototxt:2: warning: layer 'x' (ReLU): pooling_param has no effect on a layer of "
        "this type",
        "net.prototxt: 1 warning",
    ]


def test_errors_do(run_protocaffe, tmp_path):
    (tmp_path / "net.prototxt").write_text(
        NET % (UNUSED + ' include { phase: TEST } relu_parm { } bottom: "data"')
    )
    done = run_protocaffe("check", "net.prototxt")
    assert done.returncode == 1
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert (
        "net.prototxt:2: error: layer 'x' (ReLU): expected 1 bottom blob(s), got 2 [TEST]" in lines
    )
    assert lines[-1] == "net.prototxt: 2 errors, 1 warning"


def test_json(run_protocaffe, tmp_path):
    (tmp_path / "net.prototxt").write_text(NET % UNUSED)
    done = run_protocaffe("check", "net.prototxt", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "file": "net.prototxt",
        "kind": "net",
        "errors": 0,
        "warnings": 1,
        "problems": [
            {
                "severity": "warning",
                "file": "net.prototxt",
                "line": 2,
                "column": 0,
                "layer": "x",
                "phases": ["TRAIN", "TEST"],
                "message": "layer 'x' (ReLU): pooling_param has no effect on a layer of this type",
            }
        ],
    }


def test_a_missing_file(run_protocaffe):
    done = run_protocaffe("check", "net.prototxt")
    assert done.returncode == 1
    assert "net.prototxt: no such file" in done.stderr
