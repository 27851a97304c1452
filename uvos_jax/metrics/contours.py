"""Polygons of a mask, as the temporal-stability measure of DAVIS sees them. Host code, numpy.

Contours run along pixel edges with the foreground on their right, so outer contours and holes turn
opposite ways. Vertices are pixel corners (x, y), 0..W and 0..H, the last repeating the first.
The measure depends on where a polygon starts and on ties, so these follow
`cpp/polycont@fperazzi/davis`: a plain loop starts at the top-left corner of its first pixel; a loop
through corners where two diagonal pixels meet starts at such a corner and turns there.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np

#: the tracer of the reference works on doubled coordinates; tolerances refer to those.
SIMPLIFY_TOLERANCE = 3.0
UPSAMPLE_STEP = 3.0

# Directions as indices: 0 up, 1 left, 2 down, 3 right; this is also the order in which pieces of
# contour leaving one corner are numbered.
_UP, _LEFT, _DOWN, _RIGHT = range(4)


@dataclasses.dataclass
class _Piece:
    """A stretch of contour between two diagonal corners (`start`, `end`: corner indices)."""

    corners: list[int]
    leaves: int  # direction at the start
    arrives: int  # direction, seen from the end corner, of its last edge
    forward: bool  # whether the foreground is on the right

    @property
    def start(self) -> int:
        return self.corners[0]

    @property
    def end(self) -> int:
        return self.corners[-1]

    def direction_at(self, corner: int) -> int:
        return self.leaves if corner == self.start else self.arrives


class _Grid:
    """Directed pixel edges of a mask on the grid of corners, corner index = y * (W+1) + x."""

    def __init__(self, mask: np.ndarray):
        _H, W = mask.shape
        self.stride = W + 1
        self.step = (-self.stride, -1, self.stride, 1)
        padded = np.pad(mask, 1)
        inside = padded[1:-1, 1:-1]
        # (side of the pixel that is open, corner of the pixel it starts from, its direction)
        sides = (
            (padded[:-2, 1:-1], (0, 0), _RIGHT),
            (padded[1:-1, 2:], (0, 1), _DOWN),
            (padded[2:, 1:-1], (1, 1), _LEFT),
            (padded[1:-1, :-2], (1, 0), _UP),
        )
        starts, directions = [], []
        for beyond, (dy, dx), direction in sides:
            y, x = np.nonzero(inside & ~beyond)
            starts.append((y + dy) * self.stride + x + dx)
            directions.append(np.full(y.size, direction))
        start, direction = np.concatenate(starts), np.concatenate(directions)
        end = start + np.array(self.step)[direction]
        order = np.sort(start)
        self.diagonal = set(order[:-1][order[1:] == order[:-1]].tolist())
        # On ordinary corners one edge leaves and one arrives; diagonal ones are kept apart.
        self.out = dict(zip(start.tolist(), direction.tolist(), strict=True))
        self.back = dict(zip(end.tolist(), ((direction + 2) % 4).tolist(), strict=True))
        self.leaving = {
            (s, d)
            for s, d in zip(start.tolist(), direction.tolist(), strict=True)
            if s in self.diagonal
        }
        vertical = (direction == _UP) | (direction == _DOWN)
        self.vertical = np.sort(np.minimum(start, end)[vertical]).tolist()

    def walk(self, corner: int, direction: int, forward: bool, seen: set[int]) -> tuple[list, int]:
        """Corners from `corner` along the contour to a diagonal corner or back, and the last
        direction; adds the upper corners of vertical edges to `seen`."""
        table = self.out if forward else self.back
        step, diagonal = self.step, self.diagonal
        corners, first = [corner], corner
        while True:
            if direction == _DOWN:
                seen.add(corner)
            corner += step[direction]
            if direction == _UP:
                seen.add(corner)
            corners.append(corner)
            if corner in diagonal or corner == first:
                return corners, direction
            direction = table[corner]


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """All contours of a bool mask `[H,W]` as integer corner lists `[n+1,2]` (x, y), unsimplified.

    They are in the order and direction of the reference tracer (which decides between contours of
    equal length and between points of equal distance): the foreground may be on either side.
    """
    return [points for points, _ in _trace(mask)]


def _trace(mask: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    mask = np.asarray(mask, bool)
    grid = _Grid(mask)
    seen: set[int] = set()
    cycles = _diagonal_cycles(grid, seen)
    loops = []
    for top in grid.vertical:
        if top not in seen:
            forward = grid.out.get(top) == _DOWN
            loops.append((grid.walk(top, _DOWN, forward, seen)[0], forward))
    found = []
    for corners, forward in [*reversed(loops), *cycles]:
        y, x = np.divmod(np.array(corners), grid.stride)
        found.append((np.stack([x, y], -1), forward))
    return found


def _diagonal_cycles(grid: _Grid, seen: set[int]) -> list[tuple[list[int], bool]]:
    """Closed curves through diagonal corners: none crosses itself, none goes straight there."""
    pieces: list[_Piece] = []
    taken: set[tuple[int, int]] = set()
    for corner in sorted(grid.diagonal, reverse=True):
        for direction in (_UP, _LEFT, _DOWN, _RIGHT):
            if (corner, direction) in taken:
                continue
            forward = (corner, direction) in grid.leaving
            corners, last = grid.walk(corner, direction, forward, seen)
            pieces.append(_Piece(corners, direction, (last + 2) % 4, forward))
            taken |= {(corner, direction), (corners[-1], (last + 2) % 4)}

    open_at: dict[int, list[int]] = defaultdict(list)
    for number, piece in enumerate(pieces):
        for corner in {piece.start, piece.end}:
            open_at[corner].append(number)

    cycles: list[tuple[list[int], bool]] = []

    def take(number: int, corner: int) -> int:
        """Uses up a piece leaving `corner`; returns where it ends."""
        piece = pieces[number]
        for end in {piece.start, piece.end}:
            open_at[end].remove(number)
        return piece.end if corner == piece.start else piece.start

    def close(path: list[tuple[int, int]], corner: int) -> None:
        """Cuts the cycle that begins at `corner` off the end of the path."""
        at = next(i for i, (c, _) in enumerate(path) if c == corner)
        corners: list[int] = [corner]
        for begin, number in path[at:]:
            piece = pieces[number]
            ahead = begin == piece.start
            corners += (piece.corners if ahead else piece.corners[::-1])[1:]
        first = pieces[path[at][1]]
        cycles.append((corners, first.forward == (corner == first.start)))
        del path[at:]

    for corner in sorted(grid.diagonal, reverse=True):
        while open_at[corner]:
            path = [(corner, open_at[corner][0])]
            here = take(path[0][1], corner)
            if here == corner:
                close(path, here)
            while path:
                arriving = pieces[path[-1][1]].direction_at(here)
                number = open_at[here][0]
                if pieces[number].direction_at(here) == (arriving + 2) % 4:
                    number = open_at[here][1]
                path.append((here, number))
                here = take(number, here)
                if any(c == here for c, _ in path):
                    close(path, here)
    return cycles


def longest_polygon(mask: np.ndarray) -> np.ndarray | None:
    """The simplified contour with most vertices, integer `[n+1,2]` (x, y), or None without any.

    Contours of three vertices or fewer (the closing one counted) do not count; among equals the
    last one in tracing order is taken, as the Python code of DAVIS does.
    """
    best = None
    for points, forward in _trace(mask):
        corners = _corners(points)
        if len(corners) <= 3 or (best is not None and len(corners) < len(best)):
            continue
        polygon = simplify(2 * corners, SIMPLIFY_TOLERANCE) // 2
        if len(polygon) > 3 and (best is None or len(polygon) >= len(best)):
            best = polygon if forward else polygon[::-1]
    return best


def _corners(points: np.ndarray) -> np.ndarray:
    """Drops vertices on straight stretches; the start stays wherever it is."""
    steps = np.diff(points, axis=0)
    turns = np.flatnonzero((steps[1:] != steps[:-1]).any(-1)) + 1
    return points[np.concatenate([[0], turns, [len(points) - 1]])]


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Douglas-Peucker on a polyline `[n,2]`, as `psimpl` does it.

    Points closer than the tolerance to the last kept one are dropped first; then a stretch is
    split at its farthest point (the last among equals) while that is beyond the tolerance.
    """
    if len(points) < 3:
        return points
    points = points[_spread(points, tolerance)].astype(np.float64)
    keys = np.array([0, len(points) - 1])
    active = np.array([True])
    while active.any():
        # All stretches of one level at once: interior points of the active ones, in order.
        first, last = keys[:-1], keys[1:]
        size = np.where(active, last - first - 1, 0)
        busy = size > 0
        if not busy.any():
            break
        begin = np.repeat(first[busy], size[busy])
        end = np.repeat(last[busy], size[busy])
        offsets = np.concatenate([[0], np.cumsum(size[busy])[:-1]])
        index = begin + 1 + np.arange(begin.size) - np.repeat(offsets, size[busy])
        distance = _segment_distance2(points[begin], points[end], points[index])
        farthest = np.maximum.reduceat(distance, offsets)
        is_key = distance == np.repeat(farthest, size[busy])
        key = np.maximum.reduceat(np.where(is_key, index, -1), offsets)
        new = key[farthest > tolerance * tolerance]
        split = np.zeros(len(active), bool)
        split[np.flatnonzero(busy)[farthest > tolerance * tolerance]] = True
        active = np.repeat(split, np.where(split, 2, 1))
        keys = np.sort(np.concatenate([keys, new]))
    return points[keys].astype(np.int64)


def _spread(points: np.ndarray, tolerance: float) -> list[int]:
    kept, (x, y) = [0], points[0].tolist()
    for i, (a, b) in enumerate(points[1:-1].tolist(), 1):
        if (a - x) ** 2 + (b - y) ** 2 >= tolerance * tolerance:
            kept.append(i)
            x, y = a, b
    return [*kept, len(points) - 1]


def _segment_distance2(first: np.ndarray, last: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Squared distances of points to segments `[n,2]`; projected in float32 as in psimpl."""
    along, to_point = last - first, point - first
    dot = (to_point * along).sum(-1)
    length = (along * along).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = (dot.astype(np.float32) / length.astype(np.float32)).astype(np.float64)
    fraction = np.where(dot <= 0, 0.0, np.where(length <= dot, 1.0, fraction))
    offset = point - (first + fraction[:, None] * along)
    return (offset * offset).sum(-1)


def upsample(polygon: np.ndarray) -> np.ndarray:
    """Splits segments longer than 3 pixels into equal parts; float32 `[n,2]`, steps added up.

    The closing vertex stays, so the start is there twice.
    """
    points = polygon.astype(np.float32)
    steps = np.diff(points, axis=0)
    length = np.sqrt((steps * steps).sum(-1, dtype=np.float32))
    long = length > np.float32(UPSAMPLE_STEP)
    parts = np.where(long, np.ceil(length / np.float32(UPSAMPLE_STEP)), 1).astype(int)
    vector = steps / parts[:, None].astype(np.float32)
    # Row s: start of segment s, then its step `parts-1` times; cumsum adds in sequence.
    table = np.repeat(vector[:, None], parts.max(initial=1), axis=1)
    table[:, 0] = points[:-1]
    table = np.cumsum(table, axis=1, dtype=np.float32)
    used = np.arange(table.shape[1]) < parts[:, None]
    return np.concatenate([table[used], points[-1:]])
