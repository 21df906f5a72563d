"""Results of a photo: from labels to the files that the service, the client and Python give."""
