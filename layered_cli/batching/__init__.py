"""A batch: documents and prompts of any number are read one at a time, and each becomes a file at most once.

>>> from layered_cli.batching.items import Shard
>>> [number for number in range(8) if Shard.of("1/3").has(number)]
[1, 4, 7]
"""
