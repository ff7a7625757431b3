from protocaffe.layers import layer_types


def test_list_has_one_line_per_type(run_protocaffe):
    done = run_protocaffe("layers")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == layer_types()
    assert all(len(line) <= 100 for line in lines)
    assert (
        "Pooling" + " " * 18 + "The maximum, the average or a random pixel of every window."
        in lines
    )


def test_one_type_with_settings_and_example(run_protocaffe):
    done = run_protocaffe("layers", "InnerProduct")
    assert done.returncode == 0
    assert done.stdout.startswith("InnerProduct\n\ny = x W^T + bias")
    for line in (
        "Tops: y, the batch axes and num_output.",
        "inner_product_param",
        "  bias_term: bool = true",
        "      The input is flattened from this axis on.",
        "FillerParameter",
        '  type: "InnerProduct"',
    ):
        assert line in done.stdout.splitlines()


def test_unknown_type_gets_the_nearest(run_protocaffe):
    done = run_protocaffe("layers", "Poling")
    assert done.returncode == 1
    assert "unknown layer type 'Poling'; did you mean 'Pooling'?" in done.stderr
