"""Turn label maps into clean regions, instances and polygons.

These are pure functions of NumPy arrays. They use no HTTP, files or networks, and import no
other package of this repository, so that the service and `model.predict` give the same result.
"""
