import logging
import re

import numpy as np
import pytest

from protocaffe.net import Net
from protocaffe.proto import caffe_pb2
from protocaffe.proto.text import parse_text
from protocaffe.solvers import get_solver

NET = """
name: "small"
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" param { name: "w" }
        inner_product_param { num_output: 2 weight_filler { value: -3 } } }
layer { name: "act" type: "ReLU" bottom: "y" top: "z" relu_param { negative_slope: 0.5 } }
layer { name: "loss" type: "Reduction" bottom: "z" top: "loss" loss_weight: 1 }
"""

TRAINED = """
layer { name: "data" type: "DummyData" top: "x"
        dummy_data_param { shape { dim: 1 dim: 2 } data_filler { value: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
        inner_product_param { num_output: 1 bias_term: false weight_filler { value: 1 } } }
layer { name: "sum" type: "Reduction" bottom: "y" top: "sum" loss_weight: 1 }
"""


@pytest.fixture
def lines(caplog):
    """The log's lines about blobs and parameters so far."""
    caplog.set_level(logging.INFO, "protocaffe")
    return lambda: [text for text in caplog.messages if re.match(r" {4}\[[A-Z]", text)]


def make_net(debug_info=True):
    param = parse_text(NET, caffe_pb2.NetParameter())
    param.debug_info = debug_info
    net = Net(param, caffe_pb2.TRAIN, engine="numpy")
    net.blobs["x"].data[...] = (1, -2)
    return net


def test_a_pass_logs_every_blob_and_parameter(lines):
    net = make_net()
    net.forward()
    net.backward()
    assert lines() == [
        "    [Forward] Layer in, top blob x data: 1.5",
        "    [Forward] Layer ip, top blob y data: 3",
        "    [Forward] Layer ip, param blob w data: 3",
        "    [Forward] Layer ip, param blob 1 data: 0",
        "    [Forward] Layer act, top blob z data: 3",
        "    [Forward] Layer loss, top blob loss data: 6",
        "    [Backward] Layer loss, bottom blob z diff: 1",
        "    [Backward] Layer act, bottom blob y diff: 1",
        "    [Backward] Layer ip, param blob 0 diff: 1.5",
        "    [Backward] Layer ip, param blob 1 diff: 1",
        "    [Backward] All net params (data, diff): L1 norm = (12, 8); L2 norm = (6, 3.4641)",
    ]


def test_nothing_is_logged_unless_asked_for(lines):
    net = make_net(debug_info=False)
    net.forward()
    net.backward()
    assert lines() == []


def train(debug_info, iterations, **fields):
    param = caffe_pb2.SolverParameter(
        base_lr=0.25,
        lr_policy="fixed",
        display=2,
        max_iter=iterations,
        debug_info=debug_info,
        snapshot_after_train=False,
        **fields,
    )
    param.net_param.CopyFrom(parse_text(TRAINED, caffe_pb2.NetParameter()))
    param.net_param.debug_info = not debug_info
    solver = get_solver(param, engine="numpy")
    solver.step(iterations)
    return solver


def test_solver_logs_updates_in_the_iterations_that_it_displays(lines):
    solver = train(True, 4)
    np.testing.assert_allclose(solver.net.params["ip"][0].data, -1)
    updates = [line for line in lines() if "[Update]" in line]
    assert updates == [
        "    [Update] Layer ip, param 0 data: 1; diff: 0.5",
        "    [Update] Layer ip, param 0 data: 0; diff: 0.5",
    ]
    assert sum("[Forward] Layer data, top blob x data: 2" in line for line in lines()) == 2


def test_solver_decides_for_its_nets(lines):
    train(False, 1)
    assert lines() == []


def test_test_nets_log_every_pass(lines):
    train(True, 2, test_iter=[3], test_interval=5)
    forward = "    [Forward] Layer data, top blob x data: 2"
    assert lines()[: 3 * 3].count(forward) == 3
