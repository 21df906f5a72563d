"""Label tools' shapes and files: polygons, run lengths, readers and writers.

Shared by `model` (data sets) and `service` (results); it imports nothing of either.
"""
