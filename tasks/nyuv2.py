"""NYUv2: segmentation, depth and surface normals of indoor scenes, on the files that the multi-task literature uses.

1,449 images with a Kinect's depth: Silberman, Hoiem, Kohli and Fergus, "Indoor Segmentation and Support Inference from
RGBD Images", ECCV 2012. The files, of 288 by 384 pixels and with 13 classes, are those of Liu, Johns and Davison,
"End-to-End Multi-Task Learning with Attention" (MTAN), CVPR 2019: 795 images in ``train`` and 654 in ``val``. What
becomes of these is in `FolderPrediction`.
"""

import math
from dataclasses import replace

from .dense.folder_problem import FolderPrediction
from .problem import Recipe
from .problem_registry import register

CHANCE = (math.log(13), 10 / 4, 1.0)
"""What the losses are for who knows only the range of a target: all classes alike; any depth up to the 10 m that a
Kinect sees, against the one in the middle; a direction at random.
"""


@register
class NYUv2(FolderPrediction):
    """MTAN's network, but for what is shared: all up to the last layer, as in GradNorm.

    The recipe is the literature's, Adam at 1e-4 and batches of 2, for 6 epochs by default and for its 200 in full: not
    the seconds that other problems take, even on a GPU. The literature halves the rate after half of the steps.
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
        "The README of github.com/lorenmt/mtan links to the pre-processed NYUv2: unpack it, and give the folder that "
        "has train and val in it as root"
    )
    recipe = Recipe("adam", lr=1e-4, schedule="constant", batch_size=2, steps=2_000)
    full = replace(recipe, steps=71_400)
    static_weights = {"inverse-chance": tuple(3 / loss / sum(1 / other for other in CHANCE) for loss in CHANCE)}
