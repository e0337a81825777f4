"""The bench behind ``layered bench``: suites of scenes, methods, judges, records and the report."""
