"""InnerProduct as oneDNN primitives, with bias and ReLU fused in."""

from __future__ import annotations

from protocaffe.engines.base import LayerNode
from protocaffe.engines.onednn import library as dnn
from protocaffe.engines.onednn.epilogue import find_epilogue
from protocaffe.engines.onednn.plan import OneDnnPlan, kernel
from protocaffe.engines.onednn.primitives import Layout, operation
from protocaffe.engines.onednn.weighted import (
    Passes,
    bind_passes,
    gradient_layouts,
    weight_layouts,
    weights_fit,
)
from protocaffe.layers.inner_product import InnerProduct


@kernel(InnerProduct)
def inner_product(plan: OneDnnPlan, node: LayerNode[InnerProduct]) -> bool:
    """Inner product over the flattened bottom, in two dimensions.

    The bottom is reordered to plain 2-D even where it comes blocked: given the 4-D blob,
    oneDNN wants other weight layouts forward than backward, and reordering the weights every
    iteration costs far more than the small activation.
    """
    layer, blobs = node.layer, node.layer.blobs
    if layer.transpose or not weights_fit(blobs[0], blobs[0].shape):
        return False
    runtime, dtype = plan.runtime, plan.dtype
    outputs, inputs = blobs[0].shape
    rows = node.bottoms[0].count // inputs
    src, dst = (Layout.plain(runtime, (rows, columns), dtype) for columns in (inputs, outputs))
    bias = Layout.plain(runtime, (outputs,)) if len(blobs) > 1 else None
    epilogue = find_epilogue(plan, node)
    weights = weight_layouts(plan, blobs[0], (outputs, inputs), dtype)[0]
    forward = operation(
        runtime,
        "inner_product_forward",
        *(dnn.FORWARD_TRAINING, src, weights, bias, dst, epilogue.attributes(plan)),
    )
    if forward is None:
        raise layer.error("oneDNN has no implementation of this inner product")
    weights = forward.layout(dnn.QUERY_WEIGHTS, (outputs, inputs), dtype)
    passes = Passes(src, weights, bias, dst, forward, None, None)
    if node.needs_backward and node.propagate_down[0]:
        passes.backward_data = operation(
            runtime, "inner_product_backward_data", src, weights, dst, forward, None
        )
    if node.needs_backward and any(layer.param_propagate_down):
        gradient = gradient_layouts(plan, blobs[0], weights)[0]
        passes.backward_weights = operation(
            runtime, "inner_product_backward_weights", src, gradient, bias, dst, forward, None
        )
    bind_passes(plan, node, passes, epilogue)
    return True
