"""Loss balancers for multi-task learning: loss functions of T losses that also choose their weights.

::

    balancer = GradNorm(net.fork, wrt=net.trunk[-1], alpha=0.12)
    loss = balancer(losses)
    loss.backward()
"""

from .aligned_mtl import AlignedMTL
from .analytic_uncertainty import AnalyticUncertaintyWeighting
from .annealing import LearningRateAnnealing
from .audit import ForkError
from .base import LossBalancer, Range
from .cagrad import CAGrad
from .capture import CapturedStep
from .coefficient_of_variation import CoefficientOfVariation
from .combining import Combination, CombiningBalancer
from .conflict_free import ConFIG
from .db_mtl import DBMTL
from .dual_proj import DualProj
from .dynamic_average import DynamicWeightAverage
from .equal import EqualWeighting
from .excess_risk import ExcessMTL
from .fair_grad import FairGrad
from .famo import FAMO
from .fork import Fork
from .geometric_loss import GeometricLossStrategy
from .grad_drop import GradDrop
from .grad_vac import GradVac
from .gradients import GradientBalancer
from .gradnorm import GradNorm
from .gramian import GramianBalancer
from .heads import LinearHeads
from .imtl import IMTL
from .imtl_gradient import IMTLGradient
from .imtl_loss import IMTLLoss
from .inverse_dirichlet import InverseDirichlet
from .mgda import MGDA
from .moco import MoCo
from .nash_mtl import NashMTL
from .pcgrad import PCGrad
from .random_loss import RandomLossWeighting
from .registry import create, get, names, register
from .relobralo import ReLoBRaLo
from .revised_uncertainty import RevisedUncertaintyWeighting
from .scale_invariant import ScaleInvariant
from .smooth_tchebycheff import SmoothTchebycheff
from .soft_adapt import SoftAdapt
from .static import StaticWeighting
from .tchebycheff import Tchebycheff
from .uncertainty import UncertaintyWeighting
from .upgrad import UPGrad

__all__ = [
    "DBMTL",
    "FAMO",
    "IMTL",
    "MGDA",
    "AlignedMTL",
    "AnalyticUncertaintyWeighting",
    "CAGrad",
    "CapturedStep",
    "CoefficientOfVariation",
    "Combination",
    "CombiningBalancer",
    "ConFIG",
    "DualProj",
    "DynamicWeightAverage",
    "EqualWeighting",
    "ExcessMTL",
    "FairGrad",
    "Fork",
    "ForkError",
    "GeometricLossStrategy",
    "GradDrop",
    "GradNorm",
    "GradVac",
    "GradientBalancer",
    "GramianBalancer",
    "IMTLGradient",
    "IMTLLoss",
    "InverseDirichlet",
    "LearningRateAnnealing",
    "LinearHeads",
    "LossBalancer",
    "MoCo",
    "NashMTL",
    "PCGrad",
    "RandomLossWeighting",
    "Range",
    "ReLoBRaLo",
    "RevisedUncertaintyWeighting",
    "ScaleInvariant",
    "SmoothTchebycheff",
    "SoftAdapt",
    "StaticWeighting",
    "Tchebycheff",
    "UPGrad",
    "UncertaintyWeighting",
    "create",
    "get",
    "names",
    "register",
]
