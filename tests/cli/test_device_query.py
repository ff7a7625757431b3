import os

import numpy as np


def test_facts_come_in_rows(run_protocaffe):
    done = run_protocaffe("device_query")
    assert done.returncode == 0
    assert done.stderr == ""
    rows = {
        name: fact.strip() for name, _, fact in (x.partition(":") for x in done.stdout.splitlines())
    }
    assert rows["cores"].endswith(f"usable of {os.cpu_count()}")
    assert rows["engine numpy"] == f"NumPy {np.__version__}"
    assert "GiB" in rows["memory"]
    assert rows["engine onednn"].startswith(("oneDNN ", "not available: "))
    assert rows["engine cuda"].startswith(("CuPy ", "not available: "))
    assert {"processor", "instruction sets"} <= rows.keys()
