"""Which layers a net has in a given state: the include and exclude rules."""

from __future__ import annotations

from protocaffe.graph.node import Node, Refuse, refuse
from protocaffe.proto.caffe_pb2 import NetState, NetStateRule


def why_left_out(node: Node, state: NetState, refuse: Refuse = refuse) -> str:
    """Return why the layer is not in the net in this state, or an empty string if it is.

    A layer with include rules stays if any of them is met; one with exclude rules stays if none
    is. A rule is met when all its parts hold.

    Raises:
        NetError: the layer has rules of both kinds.
    """
    include, exclude = node.param.include, node.param.exclude
    if include and exclude:
        refuse(node.error("has both include and exclude rules; give only one of the two"))
    if include:
        unmet = [_unmet_part(rule, state) for rule in include]
        reasons = [f"{part} specified by a rule in layer {node.name}" for part in unmet]
        return "; ".join(reasons) if all(unmet) else ""
    if any(not _unmet_part(rule, state) for rule in exclude):
        return f"The NetState met an exclude rule in layer {node.name}"
    return ""


def _unmet_part(rule: NetStateRule, state: NetState) -> str:
    """Return the first part of the rule that does not hold, or an empty string if all do."""
    if rule.HasField("phase") and rule.phase != state.phase:
        return f"The NetState phase ({state.phase}) differed from the phase ({rule.phase})"
    if rule.HasField("min_level") and state.level < rule.min_level:
        return f"The NetState level ({state.level}) is below the min_level ({rule.min_level})"
    if rule.HasField("max_level") and state.level > rule.max_level:
        return f"The NetState level ({state.level}) is above the max_level ({rule.max_level})"
    for stage in rule.stage:
        if stage not in state.stage:
            return f"The NetState did not contain stage '{stage}'"
    for stage in rule.not_stage:
        if stage in state.stage:
            return f"The NetState contained a not_stage '{stage}'"
    return ""
