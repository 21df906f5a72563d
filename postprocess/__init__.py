"""Turn label maps into results to use: clean regions, instances and polygons.

Pure functions of NumPy arrays. They know nothing of HTTP, files or networks, and import no
other package of this repository, so that the service and `model.predict` give the same result.
"""
