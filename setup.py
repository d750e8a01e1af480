"""Pure Python for now: everything is said in pyproject.toml."""

from setuptools import setup

setup()
