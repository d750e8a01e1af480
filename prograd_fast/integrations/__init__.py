"""Adapters for training frameworks and for files of other libraries; each is imported by itself.

docs/integrations.md shows each of them, and the frameworks that need none.
"""
