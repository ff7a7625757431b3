"""Caffe reborn for Python: train deep networks from two text files."""
