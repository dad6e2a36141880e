"""Geometry caches: the scene record and the estimators that yield it."""
