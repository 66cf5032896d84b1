"""Pictures of data, predictions, distillation and runs, and a page to collect them on; none needs a display."""

from __future__ import annotations

from locdistill.viz.curves import compare_runs, plot_run
from locdistill.viz.distributions import plot_edges
from locdistill.viz.draw import Layer, draw_boxes, draw_detections, draw_layers
from locdistill.viz.mosaic import batch_mosaic, mosaic
from locdistill.viz.regions import draw_regions
from locdistill.viz.report import Picture, Preformatted, Section, Table, Text, render_page, write_page
from locdistill.viz.style import save_picture

__all__ = [
    "Layer",
    "Picture",
    "Preformatted",
    "Section",
    "Table",
    "Text",
    "batch_mosaic",
    "compare_runs",
    "draw_boxes",
    "draw_detections",
    "draw_layers",
    "draw_regions",
    "mosaic",
    "plot_edges",
    "plot_run",
    "render_page",
    "save_picture",
    "write_page",
]
