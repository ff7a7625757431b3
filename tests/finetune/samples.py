"""Small images of classes that are easy to tell apart, and a small net."""

import numpy as np

NET = """
name: "tiny"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
    transform_param { scale: 0.01 mean_value: 9 crop_size: 8 mirror: true }
    data_param { source: "nowhere" batch_size: 4 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
    transform_param { scale: 0.01 mean_value: 9 crop_size: 8 }
    data_param { source: "nowhere" batch_size: 4 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
    param { lr_mult: 1 } param { lr_mult: 2 }
    convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "side" type: "InnerProduct" bottom: "conv1" top: "side"
    inner_product_param { num_output: 10 } }
layer { name: "side_loss" type: "SoftmaxWithLoss" bottom: "side" bottom: "label" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
    convolution_param { num_output: 10 kernel_size: 1 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool" type: "Pooling" bottom: "conv2" top: "pool"
    pooling_param { pool: AVE global_pooling: true } }
layer { name: "accuracy" type: "Accuracy" bottom: "pool" bottom: "label" top: "accuracy"
    include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "pool" bottom: "label" top: "loss" }
"""


def write_images(folder, counts, size=8):
    """Write ``counts[name]`` grey images per class; each class has its own brightness."""
    import cv2

    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 40, (size, size)) + 200 * label // max(1, len(counts) - 1)
            assert cv2.imwrite(str(folder / name / f"{index}.png"), pixels.astype(np.uint8))
