"""Name tables: which official array becomes which of ours, and how its axes are laid out.

A table is a list of entries that work in both directions, so that a conversion can be checked by
going back. Whatever the official file holds beyond the entries must be listed as ignorable with a
reason; anything else is an error, as is anything missing or of another shape.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from uvos_jax.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How official arrays become ours and back.

    Both functions take as many arrays as their side of an entry has and return as many as the
    other side has (a bare array when it is one).
    """

    name: str
    to_ours: Callable[..., Any]
    to_official: Callable[..., Any]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def transposed(name: str, forward: Sequence[int]) -> Layout:
    """A permutation of axes."""
    backward = tuple(int(i) for i in np.argsort(forward))
    return Layout(name, lambda x: x.transpose(forward), lambda x: x.transpose(backward))


IDENTITY = Layout("identity", _same, _same)
#: (out, in, kh, kw) to (kh, kw, in, out); torch and Caffe convolutions.
CONV = transposed("OIHW to HWIO", (2, 3, 1, 0))
#: (in, out, kh, kw) to (kh, kw, in, out); torch's and Caffe's transposed convolutions.
TRANSPOSED_CONV = transposed("IOHW to HWIO", (2, 3, 0, 1))
#: (out, in) to (in, out).
DENSE = transposed("OI to IO", (1, 0))


@dataclasses.dataclass(frozen=True)
class Entry:
    """Official `names` that together make our `paths` (`params/...`, `batch_stats/...`)."""

    names: tuple[str, ...]
    paths: tuple[str, ...]
    layout: Layout = IDENTITY


@dataclasses.dataclass
class Report:
    """What became of every name of a conversion.

    Attributes:
      used: official names that were converted.
      ignored: (official name, why it is not needed).
      missing: official names the table wants and the file lacks.
      unknown: official names the table does not list.
      mismatched: (our path, shape after conversion, expected shape).
      unfilled: our paths that no entry of the table fills.
    """

    used: list[str] = dataclasses.field(default_factory=list)
    ignored: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[tuple[str, tuple, tuple]] = dataclasses.field(default_factory=list)
    unfilled: list[str] = dataclasses.field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether everything fitted."""
        return not (self.missing or self.unknown or self.mismatched or self.unfilled)

    def summary(self) -> str:
        """One line of counts: `682 used, 113 ignored (counter of batches)`."""
        reasons: dict[str, int] = {}
        for _, why in self.ignored:
            reasons[why] = reasons.get(why, 0) + 1
        parts = [f"{len(self.used)} used"]
        parts += [f"{n} ignored ({why})" for why, n in reasons.items()]
        parts += self.problems(limit=0)
        return ", ".join(parts)

    def lines(self) -> list[str]:
        """One line per name."""
        lines = [f"used      {name}" for name in self.used]
        lines += [f"ignored   {name}: {why}" for name, why in self.ignored]
        lines += [f"missing   {name}" for name in self.missing]
        lines += [f"unknown   {name}" for name in self.unknown]
        lines += [
            f"shape     {path}: {got}, expected {want}" for path, got, want in self.mismatched
        ]
        return lines + [f"unfilled  {path}" for path in self.unfilled]

    def problems(self, limit: int = 3) -> list[str]:
        """One phrase per kind of problem with up to `limit` examples."""
        shapes = [f"{path} {got}, expected {want}" for path, got, want in self.mismatched]
        kinds = (
            ("missing", self.missing),
            ("unknown", self.unknown),
            ("of another shape", shapes),
            ("of our parameters without a source", self.unfilled),
        )
        phrases = []
        for kind, names in kinds:
            if names:
                examples = f" (such as {'; '.join(names[:limit])})" if limit else ""
                phrases.append(f"{len(names)} {kind}{examples}")
        return phrases


@dataclasses.dataclass(frozen=True)
class NameTable:
    """Entries plus the official names that need not be converted.

    Attributes:
      entries: see `Entry`; tables are joined with `+`.
      ignored: (regex searched in the official name, reason).
    """

    entries: tuple[Entry, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: NameTable) -> NameTable:
        ignored = tuple(dict.fromkeys(self.ignored + other.ignored))
        return NameTable(self.entries + other.entries, ignored)

    def __post_init__(self) -> None:
        counts = Counter(path for entry in self.entries for path in entry.paths)
        twice = [path for path, n in counts.items() if n > 1]
        if twice:
            raise ValueError(f"name table fills these paths twice: {twice[:3]}")

    def renamed(self, official: str = "", ours: str = "") -> NameTable:
        """The table with `official` put before every official name, `ours` before every path.

        `ours` goes behind the collection: `params/conv1/kernel` becomes `params/<ours>/conv1/...`.
        """

        def moved(path: str) -> str:
            collection, _, rest = path.partition("/")
            return f"{collection}/{ours}/{rest}" if ours else path

        entries = tuple(
            Entry(tuple(official + n for n in e.names), tuple(map(moved, e.paths)), e.layout)
            for e in self.entries
        )
        return NameTable(entries, self.ignored)

    def to_ours(
        self, arrays: Mapping[str, np.ndarray], targets: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], Report]:
        """Converts official arrays.

        Args:
          arrays: official name to array.
          targets: our path to anything with a `.shape` and `.dtype`; None skips the comparison.

        Returns:
          our path to array (misshapen ones left out) and the report; nothing is raised.
        """
        report = Report()
        ours: dict[str, np.ndarray] = {}
        known = {name for entry in self.entries for name in entry.names}
        for entry in self.entries:
            missing = [name for name in entry.names if name not in arrays]
            if missing:
                report.missing += missing
                continue
            sources = [np.asarray(arrays[name]) for name in entry.names]
            try:
                results = entry.layout.to_ours(*sources)
            except (ValueError, IndexError):  # another number of axes than the layout's
                shape = tuple(x.shape for x in sources)
                want = tuple(targets[p].shape if targets else () for p in entry.paths)
                report.mismatched.append((entry.paths[0], shape, want))
                continue
            results = results if isinstance(results, tuple) else (results,)
            fits = True
            for path, array in zip(entry.paths, results, strict=True):
                if targets is not None and path in targets:
                    want = tuple(targets[path].shape)
                    if array.shape != want:
                        report.mismatched.append((path, array.shape, want))
                        fits = False
                        continue
                    array = array.astype(targets[path].dtype)
                ours[path] = np.ascontiguousarray(array).reshape(array.shape)
            if fits:
                report.used += list(entry.names)
        for name in arrays:
            if name in known:
                continue
            why = next((why for regex, why in self.ignored if re.search(regex, name)), None)
            if why is None:
                report.unknown.append(name)
            else:
                report.ignored.append((name, why))
        if targets is not None:
            listed = {path for entry in self.entries for path in entry.paths}
            report.unfilled = [path for path in targets if path not in listed]
            report.unknown += [
                f"our path {path}, which the system does not have"
                for path in sorted(listed - set(targets))
            ]
        return ours, report

    def to_official(self, ours: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inverse of `to_ours`: official name to array.

        Raises:
          CheckpointError: a path of the table is missing in `ours`.
        """
        official: dict[str, np.ndarray] = {}
        for entry in self.entries:
            for path in entry.paths:
                if path not in ours:
                    raise CheckpointError(
                        f"cannot write official names: our weights lack {path}, which becomes "
                        f"{', '.join(entry.names)}; use weights of the system the table is for"
                    )
            results = entry.layout.to_official(*(np.asarray(ours[p]) for p in entry.paths))
            results = results if isinstance(results, tuple) else (results,)
            for name, array in zip(entry.names, results, strict=True):
                official[name] = np.ascontiguousarray(array).reshape(array.shape)
        return official

    def official_shapes(self, targets: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Official name to official shape, from the shapes of our variables."""
        zeros = {
            path: np.broadcast_to(np.float32(0), target.shape) for path, target in targets.items()
        }
        shapes = {}
        for entry in self.entries:
            results = entry.layout.to_official(*(zeros[p] for p in entry.paths))
            results = results if isinstance(results, tuple) else (results,)
            shapes.update((n, r.shape) for n, r in zip(entry.names, results, strict=True))
        return shapes


# ----- entries of common layers, under their PyTorch names -----------------------------------

#: PyTorch counts the batches its BatchNorm has seen; nothing needs it.
COUNTERS = ((r"(^|\.)num_batches_tracked$", "counter of batches seen"),)


def conv(name: str, path: str, *, bias: bool = False, layout: Layout = CONV) -> NameTable:
    """`name.weight` (and `.bias`) to `params/path/kernel` (and `bias`)."""
    entries = [Entry((f"{name}.weight",), (f"params/{path}/kernel",), layout)]
    if bias:
        entries.append(Entry((f"{name}.bias",), (f"params/{path}/bias",)))
    return NameTable(tuple(entries))


def dense(name: str, path: str, *, bias: bool = False) -> NameTable:
    """A linear layer `(out, in)`."""
    return conv(name, path, bias=bias, layout=DENSE)


def array(name: str, path: str) -> NameTable:
    """One parameter whose values and shape stay as they are."""
    return NameTable((Entry((name,), (f"params/{path}",)),))


def batch_norm(name: str, path: str) -> NameTable:
    """Scale and bias to `params`, running statistics to `batch_stats`."""
    pairs = (
        ("weight", "params", "scale"),
        ("bias", "params", "bias"),
        ("running_mean", "batch_stats", "mean"),
        ("running_var", "batch_stats", "var"),
    )
    return NameTable(
        tuple(Entry((f"{name}.{a}",), (f"{kind}/{path}/{b}",)) for a, kind, b in pairs), COUNTERS
    )


def joined(tables: Iterable[NameTable]) -> NameTable:
    """All entries of several tables."""
    tables = list(tables)
    ignored = tuple(dict.fromkeys(item for table in tables for item in table.ignored))
    return NameTable(tuple(e for table in tables for e in table.entries), ignored)
