"""Offline labelling: every row of a data set in, one row of Parquet out, in the same order.

The output folder holds ``part-00000.parquet``, ... and, hidden from readers of Parquet folders,
``_plan.json`` (what is labelled by what, in which shards), ``_shards/`` (one sidecar per finished shard)
and at last ``_SUCCESS``.
"""
