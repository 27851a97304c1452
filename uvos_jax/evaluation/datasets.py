"""Names of the data sets that can be scored, importable without loading anything."""

#: data set -> measures computed by default (all that its protocol defines).
DEFAULT_MEASURES: dict[str, tuple[str, ...]] = {
    "davis16": ("J", "F", "T"),
    "davis17": ("J", "F"),
    "fbms": ("J",),
    "youtube_objects": ("J",),
    "segtrack": ("J", "MAE"),
    "vsod": ("MAE", "S", "F", "E", "wF"),
    "flow": ("EPE", "Fl"),
}
DATASETS = tuple(DEFAULT_MEASURES)
