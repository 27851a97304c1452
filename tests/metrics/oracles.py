"""The measures once more, written for slowness and clarity: loops, no packing, no jax.

None of these shares code with the library. They follow the definitions pixel by pixel and are
meant for masks of a few dozen pixels across.
"""

import itertools
import math

import numpy as np


def region_similarity(pred, gt, void=None):
    """J of two masks `[H,W]` by counting pixels one at a time."""
    both = either = 0
    for y, x in np.ndindex(pred.shape):
        if void is not None and void[y, x]:
            continue
        both += bool(pred[y, x]) and bool(gt[y, x])
        either += bool(pred[y, x]) or bool(gt[y, x])
    return both / either if either else 1.0


def boundary(mask):
    """Pixels unlike their right, lower or lower-right neighbour; beyond the image all is alike."""
    H, W = mask.shape
    out = np.zeros((H, W), bool)
    for y, x in np.ndindex(H, W):
        right, below = min(x + 1, W - 1), min(y + 1, H - 1)
        others = mask[y, right], mask[below, x], mask[below, right]
        out[y, x] = any(bool(other) != bool(mask[y, x]) for other in others)
    return out


def dilate(mask, radius):
    """Every pixel that has a set pixel within `radius`."""
    ys, xs = np.nonzero(mask)
    out = np.zeros(mask.shape, bool)
    for y, x in np.ndindex(mask.shape):
        out[y, x] = bool(np.any((ys - y) ** 2 + (xs - x) ** 2 <= radius * radius))
    return out


def contour_accuracy(pred, gt, void=None, bound_th=0.008):
    """F of two masks `[H,W]`."""
    pred, gt = pred.astype(bool), gt.astype(bool)
    if void is not None:
        pred, gt = pred & ~void, gt & ~void
    H, W = pred.shape
    radius = bound_th if bound_th >= 1 else math.ceil(bound_th * math.sqrt(H * H + W * W))
    edge_p, edge_g = boundary(pred), boundary(gt)
    n_p, n_g = int(edge_p.sum()), int(edge_g.sum())
    if n_p == 0 and n_g == 0:
        return 1.0
    if n_p == 0 or n_g == 0:
        return 0.0
    precision = int((edge_p & dilate(edge_g, radius)).sum()) / n_p
    recall = int((edge_g & dilate(edge_p, radius)).sum()) / n_g
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values):
    """(mean, recall, decay) of a list that may hold NaN."""
    n = len(values)

    def average(part):
        part = [v for v in part if not math.isnan(v)]
        return sum(part) / len(part) if part else math.nan

    # Edges of the quarters, 1-based, a half rounded up; both ends belong to a quarter.
    edges = [math.floor(1 + (n - 1) * k / 4 + 0.5) for k in range(5)]
    quarters = [values[edges[k] - 1 : edges[k + 1]] for k in range(4)]
    recall = sum(v > 0.5 for v in values) / n
    return average(values), recall, average(quarters[0]) - average(quarters[3])


# ----- temporal stability -------------------------------------------------------------------------


def shape_contexts(points):
    """Normalised histograms `[n,60]`, point by point."""
    n = len(points)
    distance = [[math.dist(p, q) for q in points] for p in points]
    scale = sum(map(sum, distance)) / n**2
    edges = [
        10 ** (math.log10(1 / 8) + k * (math.log10(2) - math.log10(1 / 8)) / 4) for k in range(5)
    ]
    out = np.zeros((n, 60))
    for i, j in itertools.product(range(n), repeat=2):
        ring = sum(distance[i][j] / scale < edge for edge in edges)
        angle = math.atan2(points[j][1] - points[i][1], points[j][0] - points[i][0])
        sector = min(int(angle % (2 * math.pi) / (2 * math.pi / 12)), 11)
        if ring:
            out[i, (ring - 1) * 12 + sector] += 1
    return out / out.sum(1, keepdims=True)


def matching_cost(first, second):
    """Chi-squared distances of histograms."""
    cost = np.zeros((len(first), len(second)))
    for i, j in np.ndindex(cost.shape):
        cost[i, j] = 0.5 * sum(
            (g - h) ** 2 / (g + h + 2.2204e-16) for g, h in zip(first[i], second[j], strict=True)
        )
    return cost


def path_sums(cost):
    """Price `[n,m]` of the cheapest monotone path from the first cell, which is free."""
    sums = np.full(cost.shape, np.inf)
    sums[0, 0] = 0.0
    for i, j in np.ndindex(cost.shape):
        before = [
            sums[a, b] for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if a >= 0 and b >= 0
        ]
        if before:
            sums[i, j] = min(before) + cost[i, j]
    return sums


def cheapest_paths(cost, slack=1e-12):
    """All cheapest paths, each from the end to the start (few: for tiny matrices only)."""
    sums = path_sums(cost)

    def back(cell):
        if cell == (0, 0):
            yield [cell]
            return
        i, j = cell
        for a, b in ((i - 1, j - 1), (i - 1, j), (i, j - 1)):
            if a >= 0 and b >= 0 and sums[a, b] + cost[cell] <= sums[cell] + slack:
                for rest in back((a, b)):
                    yield [cell, *rest]

    return back((cost.shape[0] - 1, cost.shape[1] - 1))


def stabilities(cost, slack=1e-12):
    """All values of T that some resolution of ties between paths and cells gives."""
    n, m = cost.shape
    found = set()
    for path in cheapest_paths(cost, slack):
        cells = path[:-1] or path
        least = min(cost[c] for c in cells)
        for i, j in {c for c in cells if cost[c] <= least + slack}:
            rolled = np.roll(cost, (-(i + 1), -(j + 1)), (0, 1))
            for second in cheapest_paths(rolled, slack):
                pairs = [((a + i + 1) % n, (b + j + 1) % m) for a, b in second]
                for axis in (0, 1):
                    kept = {}
                    for pair in sorted(pairs):
                        if pair[axis] not in kept or cost[pair] < cost[kept[pair[axis]]]:
                            kept[pair[axis]] = pair
                    pairs = list(kept.values())
                found.add(round(5 * sum(cost[p] for p in pairs) / len(pairs), 12))
    return sorted(found)


# ----- saliency -----------------------------------------------------------------------------------


def f_of_binary(mask, gt):
    """F (beta^2 = 0.3) of a binary map."""
    hit = np.logical_and(mask, gt).sum()
    if hit == 0:
        return 0.0
    precision, recall = hit / mask.sum(), hit / gt.sum()
    return 1.3 * precision * recall / (0.3 * precision + recall)


def e_of_binary(mask, gt):
    """E of a binary map by its alignment matrix."""
    mask, gt = mask.astype(float), gt.astype(float)
    if gt.sum() == 0:
        enhanced = 1 - mask
    elif gt.sum() == gt.size:
        enhanced = mask
    else:
        a, b = mask - mask.mean(), gt - gt.mean()
        alignment = 2 * a * b / (a * a + b * b + np.spacing(1))
        enhanced = (alignment + 1) ** 2 / 4
    return enhanced.sum() / (gt.size - 1 + np.spacing(1))


def weighted_f(p, gt):
    """Weighted F with a full 7x7 window and a brute-force distance transform.

    Also returns whether some pixel had two nearest foreground pixels with different errors, where
    the definition leaves a choice.
    """
    if not gt.any():
        return 0.0, False
    error = np.abs(p - gt)
    inside = np.argwhere(gt)
    spread, distance, ambiguous = error.copy(), np.zeros(gt.shape), False
    for y, x in np.argwhere(~gt):
        squared = ((inside - (y, x)) ** 2).sum(1)
        nearest = inside[squared == squared.min()]
        ambiguous |= len({error[tuple(q)] for q in nearest}) > 1
        spread[y, x] = error[tuple(nearest[0])]
        distance[y, x] = math.sqrt(squared.min())
    gauss = np.array(
        [[math.exp(-(i * i + j * j) / 50) for i in range(-3, 4)] for j in range(-3, 4)]
    )
    gauss /= gauss.sum()
    wide = np.pad(spread, 3)
    smooth = np.array(
        [[(wide[y : y + 7, x : x + 7] * gauss).sum() for x in range(gt.shape[1])]
         for y in range(gt.shape[0])]
    )  # fmt: skip
    relieved = np.where(gt, np.minimum(error, smooth), error)
    weighted = relieved * np.where(gt, 1.0, 2 - 0.5 ** (distance / 5))
    hit, alarm = gt.sum() - weighted[gt].sum(), weighted[~gt].sum()
    recall, precision = 1 - weighted[gt].mean(), hit / (hit + alarm)
    return 2 * recall * precision / (recall + precision), ambiguous
