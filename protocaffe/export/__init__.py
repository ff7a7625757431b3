"""Nets for other programs: ONNX."""

from protocaffe.export.onnx_model import Exported, compare, export_onnx

__all__ = ["Exported", "compare", "export_onnx"]
