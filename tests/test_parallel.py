import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

import protocaffe
from protocaffe import parallel


@pytest.fixture
def three_threads(monkeypatch):
    """Cut even the smallest work into three parts."""
    monkeypatch.setattr(parallel, "num_threads", lambda: 3)
    monkeypatch.setattr(parallel, "LEAST_COUNT", 0)
    monkeypatch.setattr(parallel, "LEAST_PRODUCTS", 0)
    parallel._pool.cache_clear()
    yield
    parallel._pool().shutdown()
    parallel._pool.cache_clear()


OTHER = types.SimpleNamespace(matmul=np.matmul, empty=np.empty)
"""An array module that is not NumPy."""


def test_parts_cover_everything_in_order(three_threads):
    parts = parallel.each_part(np, 10, 10, lambda part: part)
    assert [(part.start, part.stop) for part in parts] == [(0, 3), (3, 6), (6, 10)]
    assert len(parallel.each_part(np, 2, 2, lambda part: part)) == 2


def test_parts_run_at_the_same_time(three_threads):
    everyone = threading.Barrier(3)
    parallel.each_part(np, 3, 3, lambda part: everyone.wait(timeout=30))


def test_a_part_is_not_cut_again(three_threads):
    inner = parallel.each_part(np, 3, 3, lambda _: parallel.each_part(np, 9, 9, lambda part: part))
    assert inner == [[slice(0, 9)]] * 3
    assert len(parallel.each_part(np, 9, 9, lambda part: part)) == 3


def test_small_work_and_other_arrays_stay_in_the_callers_thread(three_threads, monkeypatch):
    assert parallel.each_part(OTHER, 9, 9, lambda part: part) == [slice(0, 9)]
    monkeypatch.setattr(parallel, "LEAST_COUNT", 10)
    assert parallel.each_part(np, 9, 9, lambda part: part) == [slice(0, 9)]


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_in_a_part_is_the_callers(three_threads, failing):
    done = []

    def work(part):
        if part.start == failing:
            raise ValueError("a part failed")
        done.append(part.start)

    with pytest.raises(ValueError, match="a part failed"):
        parallel.each_part(np, 3, 3, work)
    assert len(done) == 2  # the others were waited for


def test_parts_run_with_the_callers_errstate(three_threads):
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        parallel.each_part(np, 3, 3, lambda part: np.ones(1) / (part.start - 2))


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("chunk", [1, 8, 1 << 16])
def test_every_row_is_in_one_chunk(three_threads, monkeypatch, rows, chunk):
    monkeypatch.setattr(parallel, "CHUNK", chunk)
    a, b = np.zeros((rows, 4)), np.arange(rows)

    def work(a, b):
        assert a.size <= max(4, chunk)
        a += b[:, None]

    parallel.each_chunk(np, work, a, b)
    np.testing.assert_array_equal(a, np.broadcast_to(b[:, None], a.shape))


def test_other_arrays_are_one_chunk():
    calls = []
    parallel.each_chunk(OTHER, lambda a: calls.append(len(a)), np.zeros((1 << 20, 1)))
    assert calls == [1 << 20]


def test_elementwise_reaches_every_number(three_threads):
    x, y = np.ones((3, 5, 7)), np.zeros((3, 5, 7))
    parallel.elementwise(np, lambda x, y: np.add(x, 1, out=y), x, y)
    assert (y == 2).all()
    scalar = np.zeros(())
    parallel.elementwise(np, lambda x: np.add(x, 1, out=x), scalar)
    assert scalar == 1


sizes = st.integers(1, 9)


@given(sizes, sizes, sizes, st.sampled_from([(), (2,), (3, 2)]), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_products_are_those_of_matmul(rows, inner, columns, batch, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(*batch, rows, inner)), rng.normal(size=(*batch, inner, columns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "num_threads", lambda: 3)
        for name, value in (("LEAST_COUNT", 0), ("LEAST_PRODUCTS", 0), ("PRODUCT_CHUNK", 8)):
            patch.setattr(parallel, name, value)
        for xp in (np, OTHER):
            out = np.empty((*batch, rows, columns))
            assert parallel.matmul(xp, a, b, out=out) is out
            np.testing.assert_allclose(out, a @ b, atol=1e-12)
            np.testing.assert_allclose(parallel.matmul(xp, a, b), a @ b, atol=1e-12)
            if not batch:
                parallel.add_product(xp, a, b, out=out)
                np.testing.assert_allclose(out, 2 * (a @ b), atol=1e-12)


def blas_threads():
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


def test_blas_is_kept_to_one_thread_until_the_last_one_leaves():
    with threadpool_limits(limits=3, user_api="blas"):
        with parallel.one_blas_thread:
            assert blas_threads() == {1}
            with parallel.one_blas_thread:
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == {3}


NET = """
    force_backward: true
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 5 dim: 4 dim: 9 dim: 9 } } }
    layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 2
            weight_filler { type: "xavier" } } }
    layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
    layer { name: "max" type: "Pooling" bottom: "conv" top: "max"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
    layer { name: "lrn" type: "LRN" bottom: "max" top: "lrn" lrn_param { local_size: 3 } }
    layer { name: "ave" type: "Pooling" bottom: "lrn" top: "ave"
        pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 } }
    layer { name: "deconv" type: "Deconvolution" bottom: "ave" top: "deconv"
        convolution_param { num_output: 4 kernel_size: 2 stride: 2
            weight_filler { type: "xavier" } } }
    layer { name: "ip" type: "InnerProduct" bottom: "deconv" top: "ip"
        inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
"""


def run_net():
    net = protocaffe.Net(NET, protocaffe.TRAIN, engine="numpy", dtype="float64", seed=1)
    rng = np.random.default_rng(2)
    net.blobs["x"].data[...] = rng.normal(size=net.blobs["x"].shape)
    net.run_forward()
    net.blobs["ip"].diff[...] = rng.normal(size=net.blobs["ip"].shape)
    net.run_backward()
    diffs = [blob.diff for blobs in net.params.values() for blob in blobs]
    return [net.blobs["ip"].data, net.blobs["x"].diff, *diffs]


def test_a_net_computes_the_same_in_one_thread_and_in_several(request):
    alone = run_net()
    request.getfixturevalue("three_threads")
    together, again = run_net(), run_net()
    for one, three, same in zip(alone, together, again, strict=True):
        np.testing.assert_allclose(one, three, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(three, same)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(("setting", "expected"), [("3", "3"), ("2,1", "2")])
def test_omp_num_threads_counts(setting, expected):
    code = "from protocaffe.parallel import num_threads; print(num_threads())"
    assert run_python(code, OMP_NUM_THREADS=setting).stdout.strip() == expected


@pytest.mark.parametrize("setting", ["", "0", "many"])
def test_without_omp_num_threads_all_cores_count(setting):
    code = (
        "import os; from protocaffe.parallel import num_threads;"
        "print(num_threads() == len(os.sched_getaffinity(0)))"
    )
    assert run_python(code, OMP_NUM_THREADS=setting).stdout.strip() == "True"


def test_a_forked_child_has_threads_of_its_own():
    code = """if True:
        import os, sys
        import numpy as np
        from protocaffe.parallel import each_part
        parts = lambda: len(each_part(np, 2, 1 << 20, lambda part: part))
        assert parts() == 2
        child = os.fork()
        if not child:
            os._exit(parts())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_python(code, OMP_NUM_THREADS="2").stdout.strip() == "2"
