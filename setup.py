"""Puts the folder models/ into the package as protocaffe/models; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["protocaffe*"]), "protocaffe.models"])
