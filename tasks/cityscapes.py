"""The problem ``cityscapes``: segmentation and inverse depth of street scenes.

Cityscapes are stereo images from 50 cities: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene
Understanding", CVPR 2016. The files that are read here, with 128 by 256 pixels and 7 classes, are those of Liu, Johns
and Davison, "End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019, which the multi-task literature uses:
2,975 images in ``train`` and 500 in ``val``. `FolderPrediction` says how these become three splits.

In these files, depth is inverse depth: the disparity of the data set, scaled to lie between 0 and 0.5. It has no unit,
and the sky is near 0. Since much of it is close to 0, the relative depth error is large, in papers too: tens, not
tenths.
"""

import math
from dataclasses import replace

from .dense.folder_problem import FolderPrediction
from .problem import Recipe
from .problem_registry import register

CHANCE = (math.log(7), 0.5 / 4)
"""The expected loss of each task for a prediction that uses only the range of the target.

Segmentation: every class is equally likely. Depth: inverse depth is uniform up to 0.5, and the prediction is its
middle.
"""


@register
class Cityscapes(FolderPrediction):
    """Segmentation and inverse depth of street scenes, by one network.

    Data: 3,475 images of 128 by 256 pixels with 7 classes, from the files of MTAN. Of ``train``, some images are held
    out for validation; ``val`` is the test set. The archive has labels with 2, 7 and 19 classes. The folder ``label_7``
    is read, or ``label`` if there is no ``label_7``.

    Tasks: "segmentation", a class per pixel; "depth", the inverse depth per pixel.

    Model: MTAN's network, a `SegNet`. Unlike in MTAN, tasks share all layers except the last one, as in GradNorm.

    Metrics: mIoU, pixel accuracy and three depth errors; the primary metric combines mIoU and the absolute depth error,
    see `DensePrediction`.

    Sources: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016; Liu, Johns and
    Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019.

    The recipe is the literature's, Adam at 1e-4 with batches of 8. The default is 6 epochs; the full recipe has the
    literature's 200. Both take far longer than the seconds that other problems take, even on a GPU. The literature
    halves the learning rate after half of the steps; the recipe here keeps it constant.

    Example::

        problem = tasks.create("cityscapes", root="data/cityscapes", augment=True)
        problem.require()  # raises a MissingDataError, which says where to get the files
    """

    name = "cityscapes"
    summary = "Segmentation and inverse depth of 3,475 street scenes, on the files of the multi-task literature."
    tasks = ("segmentation", "depth")
    classes = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    depth_unit = ""
    depth_words = "inverse depth"
    source = (
        "The README of github.com/lorenmt/mtan links to the pre-processed Cityscapes with 128 x 256 pixels: unpack it, "
        "and set root to the folder that contains train and val"
    )
    label_folders = ("label_7", "label")
    inverse_depth = True
    recipe = Recipe("adam", lr=1e-4, schedule="constant", batch_size=8, steps=2_000)
    full = replace(recipe, steps=66_800)
    static_weights = {"inverse-chance": tuple(2 / loss / sum(1 / other for other in CHANCE) for loss in CHANCE)}
