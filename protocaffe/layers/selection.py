"""Layers that pick samples by numbers computed elsewhere in the net."""

from __future__ import annotations

from protocaffe.blob import Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.labels import add_rows, bottom_name, whole_numbers


@register("Filter")
class Filter(Layer):
    """Only the samples whose selector is not 0 pass.

    Backward: the gradients of the samples that passed, 0 for the others.

    Bottoms: one or more (N, ...), last the selector, N numbers. Tops: one per bottom but the
    selector, (number of samples that pass, ...); N until the first forward.
    Reference: Caffe's FilterLayer.

    Example:
        layer { name: "filter" type: "Filter" bottom: "features" bottom: "selector" top: "chosen" }
    """

    bottoms = (2, None)
    tops = (1, None)
    dynamic = True

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        if len(top) != len(bottom) - 1:
            raise self.error(
                f"needs a top for every bottom but the selector ({len(bottom) - 1}), got {len(top)}"
            )

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        selector = bottom[-1]
        if not selector.shape or selector.count != selector.shape[0]:
            raise self.error(
                f"the selector must hold one number per sample; blob "
                f"{bottom_name(self, len(bottom) - 1)} has shape {selector.shape}"
            )
        for index, (blob, target) in enumerate(zip(bottom, top, strict=False)):
            if blob.shape[:1] != selector.shape[:1]:
                raise self.error(
                    f"the selector is for {selector.shape[0]} samples; blob "
                    f"{bottom_name(self, index)} has shape {blob.shape}"
                )
            target.reshape(blob.shape)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        (self._chosen,) = self.xp.nonzero(bottom[-1].data.ravel())
        for source, target in zip(bottom, top, strict=False):
            target.reshape(len(self._chosen), *source.shape[1:])
            target.data[...] = source.data[self._chosen]

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[-1]:
            raise self.error(
                f"has no gradient for the selector {bottom_name(self, len(bottom) - 1)}"
            )
        for source, target, wanted in zip(bottom, top, propagate_down, strict=False):
            if wanted:
                dx = source.diff
                dx[...] = 0
                dx[self._chosen] = target.diff


@register("BatchReindex")
class BatchReindex(Layer):
    """y[i] = x[index[i]]; backward adds up the gradients of a sample's copies.

    Bottoms: x (N, ...), index (M), whole numbers 0 .. N-1. Tops: y (M, ...).
    Reference: Caffe's BatchReindexLayer.

    Example:
        layer { name: "pick" type: "BatchReindex" bottom: "features" bottom: "index" top: "picked" }
    """

    bottoms = (2, 2)
    tops = (1, 1)

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        index = bottom[1].shape
        if len(index) != 1 or not bottom[0].shape:
            raise self.error(
                f"needs samples (N, ...) and an index with one axis, got shapes "
                f"{bottom[0].shape} and {index}"
            )
        top[0].reshape(*index, *bottom[0].shape[1:])

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        self._index, _ = whole_numbers(self, bottom[1].data, bottom[0].shape[0], what="index")
        top[0].data[...] = bottom[0].data[self._index]

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        if propagate_down[1]:
            raise self.error(f"has no gradient for the index {bottom_name(self, 1)}")
        if propagate_down[0]:
            dx = bottom[0].diff
            dx[...] = 0
            add_rows(self.xp, dx, self._index, top[0].diff)
