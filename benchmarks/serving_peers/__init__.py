"""Parts of ``benchmarks/serving_speed.py``: the load, the processes, the floors and the peers."""
