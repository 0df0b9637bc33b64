"""Loss functions for multi-task networks that also choose the weights of the tasks' losses.

::

    balancer = GradNorm(net.fork, wrt=net.trunk[-1], alpha=0.12)
    loss = balancer(losses)  # instead of sum(losses)
    loss.backward()

Each method has a file of its own in this folder. ``engine`` holds the code that all methods share, and ``solvers`` the
small optimisation problems inside some methods. Nothing in this package imports ``tasks`` or ``bench``.
"""

from .adaptive_adversarial import AdaptiveAdversarialWeight
from .aligned_mtl import AlignedMTL
from .analytic_uncertainty import AnalyticUncertaintyWeighting
from .auto_lambda import AutoLambda
from .cagrad import CAGrad
from .coba import CoBa
from .coefficient_of_variation import CoefficientOfVariation
from .conflict_free import ConFIG
from .cosmos import COSMOS
from .db_mtl import DBMTL
from .dual_proj import DualProj
from .dynamic_average import DynamicWeightAverage
from .encodec import EnCodecBalancer
from .engine.captured_step import CapturedStep
from .engine.classes.base import LossBalancer
from .engine.classes.gradients import GradientBalancer
from .engine.fork_error import ForkError
from .engine.forks.fork import Fork
from .engine.forks.linear_heads import LinearHeads
from .engine.loss_input import Losses
from .engine.method.declared import Range, option, state
from .engine.method.readings import Read, Result, State
from .engine.method.rng import Draws
from .engine.method_registry import create, get, names, register
from .epo import EPO
from .equal import EqualWeighting
from .excess_risk import ExcessMTL
from .fair_grad import FairGrad
from .famo import FAMO
from .geometric_loss import GeometricLossStrategy
from .go4align import GO4Align
from .grad_drop import GradDrop
from .grad_vac import GradVac
from .gradnorm import GradNorm
from .imtl import IMTL
from .imtl_gradient import IMTLGradient
from .imtl_loss import IMTLLoss
from .inverse_dirichlet import InverseDirichlet
from .inverse_loss import InverseInitialLoss
from .inverse_norm import InverseGradientNorm
from .ldc_mtl import LDCMTL
from .lr_annealing import LearningRateAnnealing
from .metabalance import MetaBalance
from .mgda import MGDA
from .moco import MoCo
from .modo import MoDo
from .momentum_conflict_free import MomentumConFIG
from .nash_mtl import NashMTL
from .neural_tangent import NTKWeighting
from .pcd import PCD
from .pcgrad import PCGrad
from .penalty_boundary import PBI
from .random_loss import RandomLossWeighting
from .relobralo import ReLoBRaLo
from .revised_uncertainty import RevisedUncertaintyWeighting
from .scale_invariant import ScaleInvariant
from .sdmgrad import SDMGrad
from .self_adaptive import SelfAdaptiveWeighting
from .smooth_tchebycheff import SmoothTchebycheff
from .soft_adapt import SoftAdapt
from .static import StaticWeighting
from .tchebycheff import Tchebycheff
from .uncertainty import UncertaintyWeighting
from .unit_norm import UnitNorm
from .upgrad import UPGrad
from .version import __version__

__all__ = [
    "COSMOS",
    "DBMTL",
    "EPO",
    "FAMO",
    "IMTL",
    "LDCMTL",
    "MGDA",
    "PBI",
    "PCD",
    "AdaptiveAdversarialWeight",
    "AlignedMTL",
    "AnalyticUncertaintyWeighting",
    "AutoLambda",
    "CAGrad",
    "CapturedStep",
    "CoBa",
    "CoefficientOfVariation",
    "ConFIG",
    "Draws",
    "DualProj",
    "DynamicWeightAverage",
    "EnCodecBalancer",
    "EqualWeighting",
    "ExcessMTL",
    "FairGrad",
    "Fork",
    "ForkError",
    "GO4Align",
    "GeometricLossStrategy",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GradientBalancer",
    "IMTLGradient",
    "IMTLLoss",
    "InverseDirichlet",
    "InverseGradientNorm",
    "InverseInitialLoss",
    "LearningRateAnnealing",
    "LinearHeads",
    "LossBalancer",
    "Losses",
    "MetaBalance",
    "MoCo",
    "MoDo",
    "MomentumConFIG",
    "NTKWeighting",
    "NashMTL",
    "PCGrad",
    "RandomLossWeighting",
    "Range",
    "ReLoBRaLo",
    "Read",
    "Result",
    "RevisedUncertaintyWeighting",
    "SDMGrad",
    "ScaleInvariant",
    "SelfAdaptiveWeighting",
    "SmoothTchebycheff",
    "SoftAdapt",
    "State",
    "StaticWeighting",
    "Tchebycheff",
    "UPGrad",
    "UncertaintyWeighting",
    "UnitNorm",
    "create",
    "get",
    "names",
    "option",
    "register",
    "state",
]
