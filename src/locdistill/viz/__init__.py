"""Pictures of data, predictions, distillation and runs, and a page to collect them on; none needs a display."""
