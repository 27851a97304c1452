"""Names of the data sets that can be scored, importable without loading anything."""

#: data set -> measures computed by default.
DEFAULT_MEASURES: dict[str, tuple[str, ...]] = {
    "davis16": ("J", "F"),
}
DATASETS = tuple(DEFAULT_MEASURES)
