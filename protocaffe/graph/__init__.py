"""The structure of a net, without arrays: which layers it has and which blobs join them."""

from protocaffe.graph.graph import Graph, apply_rules, build_graph, merge_state
from protocaffe.graph.node import Node, Refuse

__all__ = ["Graph", "Node", "Refuse", "apply_rules", "build_graph", "merge_state"]
