"""Pictures of data, predictions, distillation and runs, and an HTML report page; none needs a display."""
