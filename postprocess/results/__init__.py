"""Results of a photo: turn labels into the files that the service, the client and Python give."""
