"""Feedback rules, and how they are put on a module.

`RULES` is the registry: a new rule is one new file and one line here, or an entry point of another package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from noise_models.cards import Registry
from noise_models.errors import UsageError
from optical_dfa.feedback.card import RuleCard
from optical_dfa.options import checked

if TYPE_CHECKING:
    from optical_dfa.feedback.rule import Rule

RULES: Registry[RuleCard] = Registry(
    "rule",
    RuleCard,
    {
        "bdfa": "optical_dfa.feedback.rules.bdfa:BinaryFeedbackAlignment",
        "bp": "optical_dfa.feedback.rules.bp:Backpropagation",
        "brsf": "optical_dfa.feedback.rules.sign_symmetry:BatchRandomSignSymmetry",
        "cdfa": "optical_dfa.feedback.rules.cdfa:ConvolutionalFeedbackAlignment",
        "ddfa": "optical_dfa.feedback.rules.fdfa:ForwardDirectFeedbackAlignment",
        "dfa": "optical_dfa.feedback.rules.dfa:DirectFeedbackAlignment",
        "dilated": "optical_dfa.feedback.rules.dilated:DilatedFeedback",
        "dkp": "optical_dfa.feedback.rules.dkp:DirectKolenPollack",
        "drtp": "optical_dfa.feedback.rules.drtp:DirectRandomTargetProjection",
        "ebd": "optical_dfa.feedback.rules.ebd:ErrorBroadcastDecorrelation",
        "fa": "optical_dfa.feedback.rules.fa:FeedbackAlignment",
        "fdfa": "optical_dfa.feedback.rules.fdfa:ForwardDirectFeedbackAlignment",
        "fg-a": "optical_dfa.feedback.rules.forward_gradient:ActivityForwardGradient",
        "fg-w": "optical_dfa.feedback.rules.forward_gradient:WeightForwardGradient",
        "forward-forward": "optical_dfa.feedback.rules.forward_forward:ForwardForward",
        "frsf": "optical_dfa.feedback.rules.sign_symmetry:FixedRandomSignSymmetry",
        "gated-dfa": "optical_dfa.feedback.rules.gated:GatedFeedbackAlignment",
        "grape": "optical_dfa.feedback.rules.grape:GradientAlignedProjectedError",
        "grouped": "optical_dfa.feedback.rules.grouped:GroupedFeedback",
        "hybrid": "optical_dfa.feedback.rules.hybrid:HybridFeedback",
        "ldfa": "optical_dfa.feedback.rules.ldfa:LowDimensionalFeedbackAlignment",
        "lg-fg-a": "optical_dfa.feedback.rules.local_greedy:LocalGreedyForwardGradient",
        "modular": "optical_dfa.feedback.rules.modular:ModularFeedbackAlignment",
        "mono-forward": "optical_dfa.feedback.rules.mono_forward:MonoForward",
        "pepita": "optical_dfa.feedback.rules.pepita:Pepita",
        "pfa": "optical_dfa.feedback.rules.pfa:ProductFeedbackAlignment",
        "recurrent-hybrid": "optical_dfa.feedback.rules.recurrent_hybrid:RecurrentHybrid",
        "shallow": "optical_dfa.feedback.rules.shallow:Shallow",
        "sign-dfa": "optical_dfa.feedback.rules.sign_dfa:SignFeedbackAlignment",
        "sparse-recurrent": "optical_dfa.feedback.rules.sparse_recurrent:SparseRecurrentFeedback",
        "ssdfa": "optical_dfa.feedback.rules.ssdfa:SparseFeedbackAlignment",
        "ternary": "optical_dfa.feedback.rules.ternary:TernaryFeedbackAlignment",
        "usf": "optical_dfa.feedback.rules.sign_symmetry:UniformSignSymmetry",
    },
    group="optical_dfa.rules",
)

__all__ = ["RULES", "make_rule"]


def make_rule(name: str, options: Mapping[str, Any] | None = None) -> Rule:
    """The registered rule `name`, built with its own options.

    Raises:
        UsageError: unknown name, unknown option, or an option value of the wrong type or out of range.
    """
    rule_class = RULES.load(name)
    from optical_dfa.feedback.rule import Rule

    if not (isinstance(rule_class, type) and issubclass(rule_class, Rule)):
        raise UsageError(
            f"rule {name} is no {Rule.__module__}.{Rule.__qualname__}; derive it from that class"
        )
    rule: Rule = rule_class(**checked(f"rule {name}", rule_class, options))
    return rule
