"""Readers: data sets on disk as chunks of rows, in the form a model takes them.

`open_source` looks at a path and gives a `Source`: IDX, NPY, NPZ, Parquet, CSV or a folder of images.
"""

from serving.readers.opening import open_source
from serving.readers.source import Chunk, DataError, Source, Split
from serving.readers.whole import read_all, readable_chunks

__all__ = ["Chunk", "DataError", "Source", "Split", "open_source", "read_all", "readable_chunks"]
