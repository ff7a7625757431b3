import pytest

from protocaffe.cli import main
from tests.cli.conftest import GOLDEN

FILES = GOLDEN / "files"
TEXTS = sorted(path.parent.name for path in FILES.glob("*/old.prototxt"))


@pytest.mark.parametrize("case", TEXTS)
def test_a_net_becomes_what_caffes_tool_makes_of_it(case, tmp_path):
    old, new = FILES / case / "old.prototxt", tmp_path / "new.prototxt"
    assert main(["upgrade_net_proto_text", str(old), str(new)]) == 0
    assert new.read_text() == (FILES / case / "upgraded.prototxt").read_text()


def test_a_solver_becomes_what_caffes_tool_makes_of_it(tmp_path):
    folder, new = FILES / "solver_adam", tmp_path / "new.prototxt"
    assert main(["upgrade_solver_proto_text", str(folder / "old_solver.prototxt"), str(new)]) == 0
    assert new.read_text() == (folder / "upgraded_solver.prototxt").read_text()


@pytest.mark.parametrize("case", ["model_current", "model_v1_legacy_shapes"])
def test_a_model_becomes_what_caffes_tool_makes_of_it(case, tmp_path):
    old, new = FILES / case / "model.caffemodel", tmp_path / "new.caffemodel"
    assert main(["upgrade_net_proto_binary", str(old), str(new)]) == 0
    assert new.read_bytes() == (FILES / case / "upgraded.caffemodel").read_bytes()


def test_what_was_done_is_logged(run_protocaffe, tmp_path):
    done = run_protocaffe(
        "upgrade_net_proto_text", FILES / "v0_padding/old.prototxt", "new.prototxt"
    )
    assert done.returncode == 0
    assert "from the V0 format" in done.stderr
    assert "Wrote the current format to new.prototxt" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["upgrade_net_proto_text", "none.prototxt", "new"], 1, "none.prototxt: no such file"),
        (["upgrade_net_proto_binary", "none.caffemodel", "new"], 1, "no such file"),
        (["upgrade_solver_proto_text", "none.prototxt", "new"], 1, "no such file"),
        (["upgrade_net_proto_text", "none.prototxt"], 2, "required: output"),
        (
            ["upgrade_net_proto_text", str(FILES / "model_current/model.caffemodel"), "new"],
            1,
            "expected a text file",
        ),
        (
            ["upgrade_net_proto_binary", str(FILES / "v0_padding/old.prototxt"), "new"],
            1,
            "it looks like a text file",
        ),
    ],
)
def test_mistakes(words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
