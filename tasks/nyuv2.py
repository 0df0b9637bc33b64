"""The problem ``nyuv2``: segmentation, depth and surface normals of indoor scenes.

NYUv2 has 1,449 images, whose depth was measured with a Kinect: Silberman, Hoiem, Kohli and Fergus, "Indoor Segmentation
and Support Inference from RGBD Images", ECCV 2012. The files that are read here, with 288 by 384 pixels and 13 classes,
are those of Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019, which the
multi-task literature uses: 795 images in ``train`` and 654 in ``val``. `FolderPrediction` says how these become three
splits.
"""

import math
from dataclasses import replace

from .dense.folder_problem import FolderPrediction
from .problem import Recipe
from .problem_registry import register

CHANCE = (math.log(13), 10 / 4, 1.0)
"""The expected loss of each task for a prediction that uses only the range of the target.

Segmentation: every class is equally likely. Depth: depth is uniform up to the 10 m that a Kinect sees, and the
prediction is its middle. Normals: the predicted direction is random.
"""


@register
class NYUv2(FolderPrediction):
    """Segmentation, depth and surface normals of indoor scenes, by one network.

    Data: 1,449 images of 288 by 384 pixels with 13 classes, from the files of MTAN. Of ``train``, some images are held
    out for validation; ``val`` is the test set.

    Tasks: "segmentation", a class per pixel; "depth", in metres, per pixel; "normals", a unit vector per pixel.

    Model: MTAN's network, a `SegNet`. Unlike in MTAN, tasks share all layers except the last one, as in GradNorm.

    Metrics: mIoU, pixel accuracy, three depth errors, and angles between normals; the primary metric combines mIoU, the
    absolute depth error and the mean angle, see `DensePrediction`.

    Sources: Silberman, Hoiem, Kohli and Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV
    2012; Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019.

    The recipe is the literature's, Adam at 1e-4 with batches of 2. The default is 5.6 epochs; the full recipe has the
    literature's 200. Both take far longer than the seconds that other problems take, even on a GPU. The literature
    halves the learning rate after half of the steps; the recipe here keeps it constant.

    Example::

        problem = tasks.create("nyuv2", root="data/nyuv2")
        problem.require()  # raises a MissingDataError, which says where to get the files
        problem.full  # the recipe of the literature, 200 epochs
    """

    name = "nyuv2"
    summary = "Segmentation, depth and normals of 1,449 indoor images, on the files of the multi-task literature."
    tasks = ("segmentation", "depth", "normals")
    classes = (
        *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
        *("picture", "sofa", "table", "TV", "wall", "window"),
    )
    depth_unit = "m"
    depth_words = "depth (m)"
    source = (
        "The README of github.com/lorenmt/mtan links to the pre-processed NYUv2: unpack it, and set root to the folder "
        "that contains train and val"
    )
    recipe = Recipe("adam", lr=1e-4, schedule="constant", batch_size=2, steps=2_000)
    full = replace(recipe, steps=71_400)
    static_weights = {"inverse-chance": tuple(3 / loss / sum(1 / other for other in CHANCE) for loss in CHANCE)}
