"""How good detections are: COCO's and VOC's metrics and those of rotated boxes, result files, tables."""
