"""Scores masks on disk, made by any program, against a data set's annotations.

    report = evaluate("results/", dataset="davis16", root="DAVIS/")
    report.print()

Results are one folder per sequence with one PNG per frame, named as the annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import uvos_jax
from uvos_jax.data.sources.layouts import Dataset, SequenceFiles, find_dataset
from uvos_jax.errors import ConfigError, DataError
from uvos_jax.evaluation.datasets import DEFAULT_MEASURES
from uvos_jax.evaluation.protocols import PROTOCOLS, Protocol, Row
from uvos_jax.evaluation.report import Report


def evaluate(
    results: str | Path,
    *,
    dataset: str = "davis16",
    root: str | Path,
    split: str | None = None,
    sequences: str | Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    workers: int = 1,
    resolution: str = "480p",
    merge_objects: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Scores the result maps below `results` by the official protocol of a data set.

    Args:
      results: folder with `<sequence>/<frame>.png`.
      dataset: protocol and layout, one of `evaluation.protocols.PROTOCOLS`.
      root: folder of the data set; its layout is detected and named in the report.
      split: subset, where the layout knows subsets (DAVIS: `val` by default).
      sequences: None scores the whole split and refuses incomplete results; `"present"` scores
        the sequences that both folders have; a list scores exactly those.
      measures: which measures to compute; None takes the protocol's own choice.
      workers: sequences scored at the same time (threads).
      resolution: subfolder of the DAVIS layout.
      merge_objects: whether all ids of an indexed result count as foreground.
      progress: called as `progress(sequence, done, total)` after each sequence.

    Raises:
      DataError: something is missing, of another size, or unreadable; the file is named.
      ConfigError: unknown data set, split, measure or sequence selection.
    """
    if dataset not in PROTOCOLS:
        raise ConfigError(f"data set {dataset!r} is unknown: use one of {', '.join(PROTOCOLS)}")
    if workers < 1:
        raise ConfigError(f"workers is {workers}: at least one thread is needed")
    if measures is None:
        measures = DEFAULT_MEASURES[dataset]
    protocol = PROTOCOLS[dataset](tuple(measures), merge_objects)
    results, root = Path(results), Path(root)
    if not results.is_dir():
        raise DataError(f"results folder {results} does not exist; pass the folder of sequences")
    found = find_dataset(dataset, root, split=split, resolution=resolution)
    chosen = _choose(found, results, sequences)
    for sequence in chosen:
        _check_frames(results / sequence.name, protocol.frames(sequence), protocol.suffix)
    rows = _score_all(protocol, chosen, results, workers, progress)
    selection = "" if sequences is None else f"; {len(chosen)} of its sequences selected"
    return Report(
        dataset=dataset,
        protocol=protocol.statement,
        layout=found.layout + selection,
        results=str(results),
        root=str(root),
        summary=protocol.summarise(rows),
        rows=rows,
        groups=protocol.groups(rows),
        sequences=chosen,
        version=uvos_jax.__version__,
    )


def _score_all(
    protocol: Protocol,
    chosen: tuple[SequenceFiles, ...],
    results: Path,
    workers: int,
    progress: Callable[[str, int, int], None] | None,
) -> list[Row]:
    """Rows in the order of `chosen`; decoding and jitted counting both release the GIL."""
    rows: dict[int, list[Row]] = {}
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        jobs = {
            pool.submit(protocol.score, sequence, results / sequence.name): i
            for i, sequence in enumerate(chosen)
        }
        for job in as_completed(jobs):
            rows[jobs[job]] = job.result()
            if progress is not None:
                progress(chosen[jobs[job]].name, len(rows), len(chosen))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [row for i in range(len(chosen)) for row in rows[i]]


def _choose(
    found: Dataset, results: Path, sequences: str | Sequence[str] | None
) -> tuple[SequenceFiles, ...]:
    """The sequences to score; refuses silently shrinking the set."""
    by_name = {s.name: s for s in found.sequences}
    if isinstance(sequences, str) and sequences != "present":
        sequences = [name.strip() for name in sequences.split(",") if name.strip()]
    hint = 'score a part with sequences="present" (--sequences present) or a list of names'
    if sequences is None:
        if found.absent:
            raise DataError(
                f"the data set lacks {_some(found.absent)} of the split ({found.layout}); "
                f"complete it, or {hint}"
            )
        missing = [name for name in by_name if not (results / name).is_dir()]
        if missing:
            raise DataError(
                f"{results} lacks {_some(missing)} of {len(by_name)} sequences; "
                f"complete the results, or {hint}"
            )
        return found.sequences
    if sequences == "present":
        present = tuple(s for s in found.sequences if (results / s.name).is_dir())
        if not present:
            raise DataError(
                f"{results} has a folder for none of the {len(by_name)} sequences "
                f"({', '.join(list(by_name)[:3])}, ...); it holds "
                f"{', '.join(sorted(p.name for p in results.iterdir())[:5]) or 'nothing'}"
            )
        return present
    unknown = [name for name in sequences if name not in by_name]
    if unknown or not sequences:
        raise DataError(
            f"sequences {', '.join(unknown) or '(none)'} are not in the data set "
            f"({found.layout}); it has {', '.join(list(by_name)[:8])}"
            + (", ..." if len(by_name) > 8 else "")
        )
    missing = [name for name in sequences if not (results / name).is_dir()]
    if missing:
        raise DataError(f"{results} lacks {_some(missing)}; predict these sequences first")
    return tuple(by_name[name] for name in dict.fromkeys(sequences))


def _some(names: Sequence[str], limit: int = 5) -> str:
    noun = "sequence" if len(names) == 1 else "sequences"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} {noun} ({', '.join(names[:limit])}{more})"


def _check_frames(folder: Path, frames: Sequence[str], suffix: str) -> None:
    """All needed result files must exist before any is scored."""
    present = {p.stem for p in folder.glob(f"*{suffix}")}
    missing = [f for f in frames if f not in present]
    if not missing:
        return
    kind = suffix[1:].upper()
    if not present:
        have = sorted(p.name for p in folder.iterdir())[:3]
        raise DataError(
            f"{folder} holds no {kind} (it has {', '.join(have) or 'nothing'}); results are one "
            f"{kind} per frame, named as the annotations"
        )
    raise DataError(
        f"{folder} lacks {len(missing)} of {len(frames)} frames, first {missing[0]}{suffix}; it "
        f"holds {len(present)} files named like {min(present)}{suffix}; name them as the "
        "annotations"
    )
