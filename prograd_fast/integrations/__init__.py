"""Adapters for training frameworks and for files of other libraries; each is imported by itself, as it needs its library.

docs/integrations.md shows each of them, and the frameworks that need none.
"""
