import pytest

from protocaffe.errors import NetError, TextError
from protocaffe.layers import layer_types
from protocaffe.layers.base import layer_class
from protocaffe.proto import caffe_pb2
from protocaffe.proto.forks import FORK_FIELDS, FORK_TYPES
from protocaffe.proto.text import parse_text


def test_nothing_that_is_built_is_listed_as_missing():
    assert not FORK_TYPES.keys() & set(layer_types())
    for message, name in FORK_FIELDS:
        assert name not in getattr(caffe_pb2, message).DESCRIPTOR.fields_by_name, (message, name)


@pytest.mark.parametrize(("name", "fork"), FORK_TYPES.items())
def test_a_type_that_is_not_built_is_refused_with_its_fork(name, fork):
    with pytest.raises(NetError, match=f"'{name}' comes from {fork} and is not supported"):
        layer_class(name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "layer { multibox_loss_param { num_classes: 21 } }",
            "unknown field 'multibox_loss_param' in layer; it comes from SSD's fork of Caffe and "
            "is not supported here",
        ),
        (
            "layer { loss_param { weight_by_label_freqs: true } }",
            "unknown field 'weight_by_label_freqs' in loss_param; it comes from SegNet's fork",
        ),
        (
            "layer { batch_norm_param { relu: true } }",
            "unknown field 'relu' in batch_norm_param; it comes from Intel's Caffe",
        ),
        ("layer { permut_param { } }", "unknown field 'permut_param' in layer; did you mean"),
    ],
)
def test_a_field_that_is_not_built_is_refused_with_its_fork(text, complaint):
    with pytest.raises(TextError) as error:
        parse_text(text, caffe_pb2.NetParameter())
    assert complaint in str(error.value)


def test_what_makes_no_difference_here_is_accepted():
    parse_text(
        """
        default_forward_type: FLOAT16 default_backward_type: FLOAT16
        default_forward_math: FLOAT default_backward_math: FLOAT
        global_grad_scale: 1000 global_grad_scale_adaptive: true reduce_buckets: 3
        default_conv_algos_override: "0,1,1" default_cudnn_math_override: 0
        engine: "MKLDNN" mem_param { optimize_train: true optimize_test: true exclude_blob: "x" }
        layer { forward_type: FLOAT16 backward_type: FLOAT forward_math: FLOAT
            backward_math: DOUBLE cudnn_math_override: 1 debug: true engine: "MKL2017"
            convolution_param { engine: MKLDNN conv_algos_override: "0,1,1"
                conv_algorithm: "auto" cudnn_convolution_algo_seeker: FINDEX } }
        layer { data_param { threads: 4 parser_threads: 2 cache: true }
            transform_param { use_gpu_transform: true } dropout_param { engine: CUDNN } }
        layer { pooling_param { engine: MKL2017 } lrn_param { engine: MKL2017 }
            relu_param { engine: MKLDNN } concat_param { engine: MKLDNN }
            eltwise_param { engine: MKL2017 } inner_product_param { engine: MKLDNN }
            batch_norm_param { engine: CUDNN } bn_param { engine: CUDNN } }
        """,
        caffe_pb2.NetParameter(),
    )
