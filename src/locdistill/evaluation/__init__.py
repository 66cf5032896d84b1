"""How good detections are: COCO's and VOC's metrics and those of rotated boxes, result files, tables.

``evaluator_for(dataset)`` gives the function that the engine calls; ``.result(...)`` of it has everything by class.
"""
