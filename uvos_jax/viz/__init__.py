"""Pictures of predictions: overlays, contact sheets."""

from uvos_jax.viz.overlay import annotate, contact_sheet, contour, overlay, side_by_side

__all__ = ["annotate", "contact_sheet", "contour", "overlay", "side_by_side"]
