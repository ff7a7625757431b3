"""SSD's layers: PriorBox and DetectionOutput. Boxes are (xmin, ymin, xmax, ymax) in 0 .. 1."""

from __future__ import annotations

import math

import numpy as np

from protocaffe.blob import Array, Blob
from protocaffe.layers.base import Layer, register
from protocaffe.layers.labels import bottom_name
from protocaffe.proto.caffe_pb2 import NonMaximumSuppressionParameter, PriorBoxParameter

Pair = tuple[float, float]


@register("PriorBox")
class PriorBox(Layer):
    """The boxes that predictions start from: the same ones around every pixel of a feature map.

    For each ``min_size`` s, in this order: a square of side s; if there are ``max_size``s, one of
    side sqrt(s max_size); and for each ``aspect_ratio`` r but 1 (with ``flip``, 1 / r behind it) a
    box of s sqrt(r) x s / sqrt(r). Centres lie at (column + offset) step and (row + offset) step.
    All in pixels of the image, then divided by its size. The values depend on shapes alone, so
    gradients are 0.

    Bottoms: a feature map (N, C, H, W); the image, for its size. Tops: (1, 2, H W boxes 4), first
    the boxes row by row, then the variances of their four numbers.
    Reference: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016; PriorBoxLayer of its
    fork of Caffe.

    Example:
        layer { name: "priors" type: "PriorBox" bottom: "conv4_3" bottom: "data" top: "priors"
            prior_box_param { min_size: 30 max_size: 60 aspect_ratio: 2 step: 8
                variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }

    Attributes:
        values: the boxes and variances, known after ``reshape``.
    """

    bottoms = (2, 2)
    tops = (1, 1)

    def allow_force_backward(self, bottom_index: int) -> bool:
        return False

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.prior_box_param
        if not param.min_size or min(param.min_size) <= 0:
            raise self.error("needs at least one min_size, and positive ones")
        if param.max_size and len(param.max_size) != len(param.min_size):
            raise self.error(
                f"needs no max_size or one per min_size; got {len(param.min_size)} min_size(s) "
                f"and {len(param.max_size)} max_size(s)"
            )
        for small, large in zip(param.min_size, param.max_size, strict=False):
            if large <= small:
                raise self.error(f"max_size {large:g} must be larger than min_size {small:g}")
        if len(param.variance) not in (0, 1, 4) or any(each <= 0 for each in param.variance):
            raise self.error(
                f"takes one variance or four, all positive; got {list(param.variance)}"
            )
        self._image = self._pair(param, "img_size", "img_h", "img_w")
        self._step = self._pair(param, "step", "step_h", "step_w")

    def _pair(self, param: PriorBoxParameter, both: str, high: str, wide: str) -> Pair | None:
        """Read a setting given for both axes at once, for each, or not at all."""
        if not any(param.HasField(name) for name in (both, high, wide)):
            return None
        if param.HasField(both) and (param.HasField(high) or param.HasField(wide)):
            raise self.error(f"give either {both} or {high} and {wide}, not both")
        names = (both, both) if param.HasField(both) else (high, wide)
        values = (getattr(param, names[0]), getattr(param, names[1]))
        if min(values) <= 0:
            raise self.error(f"{' and '.join(dict.fromkeys(names))} must be given and positive")
        return values

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        for blob in bottom:
            if blob.num_axes != 4:
                raise self.error(f"the bottoms must have 4 axes (N, C, H, W), got {blob.shape}")
        height, width = bottom[0].shape[2:]
        image = self._image or (bottom[1].height, bottom[1].width)
        step = self._step or (image[0] / height, image[1] / width)
        param = self.param.prior_box_param
        sizes = np.array(self._sizes(), np.float32)
        # Single precision up to here and double from here on, as in SSD.
        steps, offset = np.array(step, np.float32), np.float32(param.offset)
        rows, columns = (
            (np.arange(extent, dtype=np.float32) + offset) * each
            for extent, each in zip((height, width), steps, strict=True)
        )
        centres = np.stack(np.broadcast_arrays(columns[None, :], rows[:, None]), axis=-1)
        corners = np.array([-0.5, 0.5])[:, None] * sizes[:, None].astype(np.float64)
        boxes = (centres[:, :, None, None] + corners) / np.array([image[1], image[0]], np.float64)
        if param.clip:
            boxes = np.clip(boxes, 0, 1)
        variances = np.array(param.variance or [np.float32(0.1)])
        values = np.stack([boxes.reshape(-1, 4), np.broadcast_to(variances, (boxes.size // 4, 4))])
        self.values: Array = self.xp.asarray(values.reshape(1, 2, -1).astype(self.dtype))
        top[0].reshape(self.values.shape)

    def _sizes(self) -> list[Pair]:
        """Return widths and heights of the boxes around one pixel."""
        param = self.param.prior_box_param
        ratios = self._ratios()
        sizes: list[Pair] = []
        for index, small in enumerate(param.min_size):
            side = float(int(small))
            sizes.append((side, side))
            if param.max_size:
                larger = math.sqrt(int(small) * int(param.max_size[index]))
                sizes.append((larger, larger))
            sizes += [(side * math.sqrt(ratio), side / math.sqrt(ratio)) for ratio in ratios]
        return sizes

    def _ratios(self) -> list[float]:
        """Return the aspect ratios besides 1, each once."""
        param = self.param.prior_box_param
        ratios = [1.0]
        for ratio in param.aspect_ratio:
            if ratio <= 0:
                raise self.error(f"aspect_ratio must be positive, got {ratio:g}")
            if all(abs(ratio - known) >= SAME_RATIO for known in ratios):
                ratios += [ratio, float(np.float32(1 / ratio))] if param.flip else [ratio]
        return ratios[1:]

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        top[0].data[...] = self.values

    def backward(self, top: list[Blob], propagate_down: list[bool], bottom: list[Blob]) -> None:
        for blob, wanted in zip(bottom, propagate_down, strict=True):
            if wanted:
                blob.diff[...] = 0


SAME_RATIO = 1e-6
"""Aspect ratios that are nearer to each other count once."""


@register("DetectionOutput")
class DetectionOutput(Layer):
    """The objects an SSD has found: predictions turned into boxes, the best of each place kept.

    A prediction l and its prior p with variances v give a box b, by ``code_type``:
    CORNER: b = p + v l. CORNER_SIZE: the same, times width or height of p. CENTER_SIZE: centre
    = p's centre + v l times p's size, size = p's size times e^(v l). With
    ``variance_encoded_in_target`` there is no v.

    Per image and class but ``background_label_id`` (0): of the boxes whose score is above
    ``confidence_threshold``, the ``nms_param.top_k`` best; from the best one down, each stays
    unless it overlaps one that stayed by more than ``nms_threshold`` (intersection over union;
    times ``eta`` after each that stays, while above 0.5). Then the ``keep_top_k`` best per image.
    Boxes are not cut at the image's edges. There is no gradient.

    With five bottoms, as in RefineDet, the last one moves the priors first, as a prediction does;
    and where the fourth gives an object less than ``objectness_score``, all is background.

    Bottoms: locations (N, P L 4) with L 1, or num_classes without ``share_location``; scores
    (N, P num_classes), those of a prior next to each other; priors (1, 2, P 4); optionally the
    image, unused, or RefineDet's first scores (N, P 2) and locations (N, P 4). Tops:
    (1, 1, D, 7), a row (image, class, score, xmin, ymin, xmax, ymax) per object, by image, class,
    falling score; if there is none at all, a row (image, -1, ...) per image.
    Reference: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016; DetectionOutputLayer
    of its fork of Caffe.

    Example:
        layer { name: "found" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "priors"
            top: "found" include { phase: TEST }
            detection_output_param { num_classes: 21 code_type: CENTER_SIZE keep_top_k: 200
                confidence_threshold: 0.01 nms_param { nms_threshold: 0.45 top_k: 400 } } }
    """

    on_host = True
    bottoms = (3, 5)
    tops = (1, 1)
    dynamic = True

    def allow_force_backward(self, bottom_index: int) -> bool:
        return False

    def setup(self, bottom: list[Blob], top: list[Blob]) -> None:
        param = self.param.detection_output_param
        if param.num_classes < 1:
            raise self.error("num_classes is missing")
        nms = param.nms_param
        if nms.nms_threshold < 0:
            raise self.error(f"nms_threshold must not be negative, got {nms.nms_threshold:g}")
        if not 0 < nms.eta <= 1:
            raise self.error(f"eta must be above 0 and at most 1, got {nms.eta:g}")
        self.classes = param.num_classes
        self.location_classes = 1 if param.share_location else self.classes
        self.threshold = -math.inf
        if param.HasField("confidence_threshold"):
            self.threshold = param.confidence_threshold

    def reshape(self, bottom: list[Blob], top: list[Blob]) -> None:
        locations, scores, priors = bottom[:3]
        if locations.shape[:1] != scores.shape[:1] or not locations.shape:
            raise self.error(
                f"locations {locations.shape} and scores {scores.shape} are not of one batch"
            )
        if priors.num_axes < 3 or priors.shape[1] != 2 or priors.count % 8:
            raise self.error(f"priors must have shape (1, 2, 4 per box), got {priors.shape}")
        self.priors = priors.count // 8
        counts = {0: 4 * self.location_classes, 1: self.classes}
        if len(bottom) == 5:
            counts |= {3: 2, 4: 4}
        for index, per_prior in counts.items():
            wanted = self.priors * per_prior
            if math.prod(bottom[index].shape[1:]) != wanted:
                raise self.error(
                    f"{self.priors} priors need {wanted} numbers per image in blob "
                    f"{bottom_name(self, index)}, which has shape {bottom[index].shape}"
                )
        top[0].reshape(1, 1, 1, 7)

    def forward(self, bottom: list[Blob], top: list[Blob]) -> None:
        images = bottom[0].shape[0]
        param = self.param.detection_output_param
        priors, variances = bottom[2].data.reshape(2, 1, self.priors, 1, 2, 2)
        scores = bottom[1].data.reshape(images, self.priors, self.classes)
        if len(bottom) == 5:
            priors = self._decoded(bottom[4].data, priors, variances)
            objects = bottom[3].data.reshape(images, self.priors, 2)[..., 1:]
            background = np.arange(self.classes) == 0
            scores = np.where(objects < param.objectness_score, background, scores)
        boxes = self._decoded(bottom[0].data, priors, variances).reshape(*scores.shape[:2], -1, 4)
        found = [
            self._best_of_image(image, boxes[image], scores[image], param.keep_top_k)
            for image in range(images)
        ]
        rows = np.concatenate(found)
        if not len(rows):
            rows = np.full((images, 7), -1, self.dtype)
            rows[:, 0] = np.arange(images)
        top[0].reshape(1, 1, *rows.shape)
        top[0].data[...] = self.xp.asarray(rows)

    def _decoded(self, locations: Array, prior: Array, variance: Array) -> Array:
        """Return the predicted boxes (N, P, L, 2, 2), the corner (x, y) last but one and last."""
        param = self.param.detection_output_param
        shift = locations.reshape(len(locations), self.priors, -1, 2, 2)
        if not param.variance_encoded_in_target:
            shift = shift * variance
        size = prior[..., 1:, :] - prior[..., :1, :]
        if param.code_type == PriorBoxParameter.CORNER:
            boxes: Array = prior + shift
        elif param.code_type == PriorBoxParameter.CORNER_SIZE:
            boxes = prior + shift * size
        else:
            centre = shift[..., :1, :] * size + (prior[..., :1, :] + prior[..., 1:, :]) / 2
            half = np.exp(shift[..., 1:, :]) * size / 2
            boxes = np.concatenate([centre - half, centre + half], axis=-2)
        return boxes

    def _best_of_image(self, image: int, boxes: Array, scores: Array, keep: int) -> Array:
        """Return the rows (D, 7) of one image's objects, from its boxes (P, L, 4)."""
        param = self.param.detection_output_param
        found = [np.empty((0, 7), self.dtype)]
        for label in range(self.classes):
            if label == param.background_label_id:
                continue
            (candidates,) = np.nonzero(scores[:, label] > self.threshold)
            own = boxes[:, label if self.location_classes > 1 else 0]
            best = suppress(own[candidates], scores[candidates, label], param.nms_param)
            chosen = candidates[best]
            rows = np.empty((len(chosen), 7), self.dtype)
            rows[:, 0], rows[:, 1], rows[:, 2] = image, label, scores[chosen, label]
            rows[:, 3:] = own[chosen]
            found.append(rows)
        rows = np.concatenate(found)
        if 0 <= keep < len(rows):
            best = np.argsort(-rows[:, 2], kind="stable")[:keep]
            rows = rows[np.sort(best)]
        return rows


def suppress(boxes: Array, scores: Array, param: NonMaximumSuppressionParameter) -> Array:
    """Return the places of the boxes that non-maximum suppression keeps, the best first.

    Args:
        boxes: (B, 4).
        scores: (B).
        param: threshold, eta, and how many boxes to look at.
    """
    order = np.argsort(-scores, kind="stable")
    if param.HasField("top_k") and param.top_k > -1:
        order = order[: param.top_k]
    boxes = boxes[order].T
    threshold, eta = np.float32(param.nms_threshold), np.float32(param.eta)
    overlap = np.zeros(len(order), boxes.dtype)  # the largest with a box that stayed
    kept = []
    for start in range(0, len(order), BLOCK):
        block = start + np.flatnonzero(overlap[start : start + BLOCK] <= threshold)
        rest = overlap[start:]
        for place, ratios in zip(block, _overlaps(boxes[:, block], boxes[:, start:]), strict=True):
            if overlap[place] <= threshold:
                kept.append(place)
                np.maximum(rest, ratios, out=rest)
                if eta < 1 and threshold > 0.5:
                    threshold *= eta
    return order[kept]


BLOCK = 64
"""How many boxes are compared with all later ones at a time."""


def _overlaps(some: Array, others: Array) -> Array:
    """Return intersection over union of boxes (4, A) with boxes (4, B), as (A, B)."""
    some = some[:, :, None]
    low, high = np.maximum(some[:2], others[:2, None]), np.minimum(some[2:], others[2:, None])
    shared = _areas(*low, *high)
    union = _areas(*some) + _areas(*others) - shared
    ratios: Array = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return ratios


def _areas(xmin: Array, ymin: Array, xmax: Array, ymax: Array) -> Array:
    """Return the areas of boxes, 0 for those turned inside out."""
    areas: Array = np.maximum(xmax - xmin, 0) * np.maximum(ymax - ymin, 0)
    return areas
