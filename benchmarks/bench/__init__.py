"""The bench behind ``layered bench``: suites of scenes, methods, judges, records and reports.

>>> from pathlib import Path
>>> from benchmarks.bench.report import Summary
>>> from benchmarks.bench.running import run_suite
>>> from benchmarks.bench.suite import Settings, read_suite
>>> from demo.world.places import MODEL
>>> suite = read_suite("transparency")
>>> settings = Settings(count=1, model=MODEL, out=Path("results/example"), steps=2, processes=1)
>>> table = Summary(suite, settings, run_suite(suite, settings)).table()
>>> table.splitlines()[0]
'| | object_right ↑ | alpha_iou ↑ | background_alpha ↓ | material ↓ | native ↑ | time ↓ |'
"""
