"""The pixels of photos as networks see them, the same in training and in the service.

It imports no other package of this repository.
"""
