"""A report as one self-contained page: tables, one curve per sequence, the worst frames.

Curves are inline SVG, pictures inline JPEG; the page needs no network and no scripts.
"""

from __future__ import annotations

import base64
import html
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from uvos_jax.errors import DataError
from uvos_jax.evaluation import masks

if TYPE_CHECKING:
    from uvos_jax.data.sources.layouts import SequenceFiles
    from uvos_jax.evaluation.protocols import Row
    from uvos_jax.evaluation.report import Report

_COLORS = ("#1f6fb4", "#d1495b", "#3a8f5c", "#8b5fbf", "#c77d1f", "#4c5760", "#0b7a75", "#a23e8c")
_WIDTH, _HEIGHT, _MARGIN = 420, 120, 26
_THUMB = 320  # pixels across
#: measures in [0,1] that a curve shows; others get an axis of their own range.
_ERRORS = ("T", "MAE", "EPE", "Fl")
_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;color:#20262d;max-width:1100px}
body{margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .6rem}
p.note{color:#57606a;max-width:75ch;margin:.4rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #e3e7eb;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{color:#57606a;font-weight:600}
tr.total td{font-weight:700;border-top:2px solid #20262d}tr.group td{color:#1f6fb4}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1rem}
figure{margin:0}figcaption{font-size:.85rem;color:#57606a}
svg{width:100%;height:auto;background:#fafbfc}img{width:100%;display:block}
.key{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em;vertical-align:-.05em}
.scroll{overflow-x:auto}
"""


def render(report: Report, *, worst: int = 12) -> str:
    """The page for a report; `worst` frames are pictured."""
    names = list(dict.fromkeys(name for row in report.rows for name in row.values))
    curves = "".join(_figure(row, names) for row in report.rows)
    title = html.escape(f"{report.dataset} · {report.results}")
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f"<p class=note>{html.escape(report.protocol)}</p>",
        f"<p class=note>Annotations: {html.escape(report.root)} ({html.escape(report.layout)}). "
        f"uvos_jax {html.escape(report.version)}.</p>",
        "<h2>Scores</h2>",
        _table(report),
        f"<h2>Per frame</h2><p class=note>{_legend(names)}</p>",
        f"<div class=grid>{curves}</div>",
        _worst_frames(report, worst),
        "</body></html>\n",
    ]
    return "".join(parts)


def _table(report: Report) -> str:
    columns = report.columns

    def line(name: str, numbers: dict[str, float], kind: str = "") -> str:
        cells = "".join(f"<td>{_number(numbers.get(c))}</td>" for c in columns)
        return f"<tr class='{kind}'><td>{html.escape(name)}</td>{cells}</tr>"

    head = "".join(f"<th>{html.escape(c.replace('_', ' '))}</th>" for c in columns)
    body = "".join(line(row.name, row.stats) for row in report.rows)
    body += "".join(line(f"[{n}]", numbers, "group") for n, numbers in report.groups.items())
    body += line(f"average of {len(report.rows)}", report.summary, "total")
    extra = "; ".join(
        f"{html.escape(k.replace('_', ' '))} {_number(v)}"
        for k, v in report.summary.items()
        if k not in columns
    )
    return (
        f"<div class=scroll><table><thead><tr><th>sequence</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div><p class=note>{extra}</p>"
    )


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _legend(names: list[str]) -> str:
    return "".join(
        f"<span class=key style='background:{_color(i)}'></span>{html.escape(name)}"
        for i, name in enumerate(names)
    )


def _color(index: int) -> str:
    return _COLORS[index % len(_COLORS)]


def _figure(row: Row, names: list[str]) -> str:
    top = max([1.0, *(float(np.nanmax(v)) for v in row.values.values() if np.isfinite(v).any())])
    plot_w, plot_h = _WIDTH - 2 * _MARGIN, _HEIGHT - _MARGIN - 8
    n = len(row.frames)

    def x(i: float) -> float:
        return _MARGIN + plot_w * (i / max(n - 1, 1))

    def y(v: float) -> float:
        return 8 + plot_h * (1 - v / top)

    lines = "".join(
        f"<line x1={_MARGIN} x2={_WIDTH - _MARGIN} y1={y(v):.1f} y2={y(v):.1f} stroke='#dfe4e8'/>"
        f"<text x=2 y={y(v) + 4:.1f} font-size=10 fill='#57606a'>{v:.3g}</text>"
        for v in (0, top / 2, top)
    )
    for i, name in enumerate(names):
        if name in row.values:
            points = [(x(k), y(v)) for k, v in enumerate(row.values[name]) if np.isfinite(v)]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
            if len(points) == 1:
                a, b = points[0]
                lines += f"<circle cx={a:.1f} cy={b:.1f} r=2.5 fill='{_color(i)}'/>"
            lines += f"<polyline points='{path}' fill=none stroke='{_color(i)}' stroke-width=1.5 />"
    lines += "".join(
        f"<text x={px} y={_HEIGHT - 6} font-size=10 fill='#57606a' text-anchor={anchor}>"
        f"{html.escape(frame)}</text>"
        for px, anchor, frame in (
            (_MARGIN, "start", row.frames[0]),
            (_WIDTH - _MARGIN, "end", row.frames[-1]),
        )
    )
    name = html.escape(row.name)
    return (
        f"<figure><svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='{name}'>{lines}</svg>"
        f"<figcaption>{name}</figcaption></figure>"
    )


# ----- worst frames ------------------------------------------------------------------------------


def worst_frames(report: Report, count: int) -> list[tuple[Row, int, str, float]]:
    """The frames with the lowest value of the report's first measure (highest, for errors).

    At most two per sequence row while others remain, so that one bad video does not fill the list.
    """
    found = []
    for row in report.rows:
        name = next((m for m in row.values if np.isfinite(row.values[m]).any()), None)
        if name is None:
            continue
        sign = -1.0 if name in _ERRORS else 1.0
        ranked = sorted((sign * v, k) for k, v in enumerate(row.values[name]) if np.isfinite(v))
        found += [(rank // 2, key, row, k, name) for rank, (key, k) in enumerate(ranked[:count])]
    found.sort(key=lambda item: item[:2])
    chosen = sorted(found[:count], key=lambda item: item[1])
    return [(row, k, name, float(row.values[name][k])) for _, _, row, k, name in chosen]


def _worst_frames(report: Report, count: int) -> str:
    by_name = {s.name: s for s in report.sequences}
    figures = ""
    for row, k, name, value in worst_frames(report, count):
        sequence = by_name.get(row.name) or by_name.get(row.name.rpartition("_")[0])
        picture = _picture(report, sequence, row.frames[k]) if sequence is not None else None
        if picture is not None:
            figures += (
                f"<figure><img alt='' src='data:image/jpeg;base64,{picture}'><figcaption>"
                f"{html.escape(row.name)} {html.escape(row.frames[k])}: {name} {value:.3f}"
                "</figcaption></figure>"
            )
    if not figures:
        return ""
    return (
        "<h2>Worst frames</h2><p class=note>Green: annotated only. Red: result only. "
        f"Yellow: both.</p><div class=grid>{figures}</div>"
    )


def _picture(report: Report, sequence: SequenceFiles, frame: str) -> str | None:
    """A small overlay of result and annotation on the frame, base64 JPEG; None for flow."""
    annotation = sequence.annotations[sequence.frames.index(frame)]
    if annotation[0].suffix == ".flo":
        return None
    if report.dataset == "davis17":
        gt = masks.object_ids(annotation[0])
        gt = (gt > 0) & (gt < 255)
    else:
        gt = masks.annotation(annotation, sequence.rule)
    path = f"{report.results}/{sequence.name}/{frame}.png"
    values, _ = masks.read_values(path)
    # For looking only: ids count as one foreground, soft maps above half of their maximum.
    pred = values > 0 if report.dataset == "davis17" else values > values.max(initial=0) / 2
    H, W = gt.shape
    size = (_THUMB, max(1, round(_THUMB * H / W)))
    image = _background(sequence, frame, size)
    both = [
        np.asarray(Image.fromarray(m.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX))
        / 255.0
        for m in (pred, gt)
    ]
    tint = np.stack([both[0], both[1], np.zeros_like(both[0])], -1) * 255
    weight = 0.45 * np.maximum(*both)[..., None]
    blended = image * (1 - weight) + tint * weight
    out = io.BytesIO()
    Image.fromarray(blended.round().astype(np.uint8)).save(out, "JPEG", quality=80)
    return base64.b64encode(out.getvalue()).decode()


def _background(sequence: SequenceFiles, frame: str, size: tuple[int, int]) -> np.ndarray:
    path = sequence.images.get(frame)
    if path is None:
        return np.full((size[1], size[0], 3), 90.0)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize(size), np.float64)
    except OSError as error:
        raise DataError(f"{path}: the frame cannot be read ({error})") from error
