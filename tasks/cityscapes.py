"""Cityscapes: segmentation and inverse depth of street scenes, on the files that the multi-task literature uses.

Stereo images from 50 cities: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016.
The files, of 128 by 256 pixels and with 7 classes, are those of Liu, Johns and Davison, "End-to-End Multi-Task Learning
with Attention" (MTAN), CVPR 2019: 2,975 images in ``train`` and 500 in ``val``. What becomes of these is in
`FolderPrediction`.

Depth is inverse depth there: the disparity of the data set, scaled to lie between 0 and 0.5 (without unit; the sky is
near 0). Much of it is close to 0, so the relative error is large, tens rather than tenths, in papers too.
"""

import math
from dataclasses import replace

from .dense.folder_problem import FolderPrediction
from .problem import Recipe
from .problem_registry import register

CHANCE = (math.log(7), 0.5 / 4)
"""What the losses are for who knows only the range of a target: all classes alike; any inverse depth up to 0.5, against
the one in the middle.
"""


@register
class Cityscapes(FolderPrediction):
    """MTAN's network, but for what is shared: all up to the last layer, as in GradNorm.

    The recipe is the literature's, Adam at 1e-4 and batches of 8, for 6 epochs by default and for its 200 in full: not
    the seconds that other problems take, even on a GPU. The literature halves the rate after half of the steps.

    The archive has labels of 2, 7 and 19 classes; read are those of ``label_7``, or of ``label`` if there is no such
    folder.
    """

    name = "cityscapes"
    summary = "Segmentation and inverse depth of 3,475 street scenes, on the files of the multi-task literature."
    tasks = ("segmentation", "depth")
    classes = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    depth_unit = ""
    depth_words = "inverse depth"
    source = (
        "The README of github.com/lorenmt/mtan links to the pre-processed Cityscapes, of 128 x 256 pixels: unpack it, "
        "and give the folder that has train and val in it as root"
    )
    label_folders = ("label_7", "label")
    inverse_depth = True
    recipe = Recipe("adam", lr=1e-4, schedule="constant", batch_size=8, steps=2_000)
    full = replace(recipe, steps=66_800)
    static_weights = {"inverse-chance": tuple(2 / loss / sum(1 / other for other in CHANCE) for loss in CHANCE)}
