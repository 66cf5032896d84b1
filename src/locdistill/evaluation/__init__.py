"""Evaluation of detections: metrics of COCO, of VOC and of rotated boxes, result files, tables."""
