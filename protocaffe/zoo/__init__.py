"""The model zoo: what the folders of models/ hold, and the big nets as short functions."""

from protocaffe.zoo.catalogue import Model, catalogue, find_model, read_readme

__all__ = ["Model", "catalogue", "find_model", "read_readme"]
