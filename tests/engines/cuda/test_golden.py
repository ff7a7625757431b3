import pytest

from tests.engines.cuda.standin import standin_engine
from tests.test_golden_layers import CASES, Case


@pytest.mark.parametrize("folder", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_recorded_case(folder, monkeypatch):
    monkeypatch.chdir(folder)
    case = Case(folder, standin_engine())
    for name in case.meta["inputs_without_diff"]:
        case.net.blobs[name].diff[...] = 12.5
    for number in range(1, case.meta["forward_backward_passes"] + 1):
        case.run("" if number == 1 else f"step{number}/")
