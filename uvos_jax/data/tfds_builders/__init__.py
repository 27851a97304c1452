"""Data sets as array_record files, through tensorflow_datasets but without TensorFlow.

`prepare.prepare` packs a data set's folder; `builder.builder_class(name)` is its tfds builder;
`data.sources.records.RecordSource` reads the result back.
"""
