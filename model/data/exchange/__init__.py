"""Label tools' files into a folder data set, and data sets into label tools' files."""
