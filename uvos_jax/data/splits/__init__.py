"""Lists of sequences that a data set's own files do not always carry."""
