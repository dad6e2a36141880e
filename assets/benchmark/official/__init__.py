"""Readers of published benchmarks, one module each: ``VERSION`` and ``read(path)``.

Every module says in its docstring which file it reads, which columns it takes from it and where that is known from.
"""
