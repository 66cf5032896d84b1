"""Losses on discrete distributions."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def distribution_focal_loss(
    logits: Float[Tensor, "*batch n"], targets: Float[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """Compute cross-entropy to a distribution over the bins (GFL, equation 6, when the target is two-hot).

    A bin with target 0 contributes 0, even where its logit is ``-inf``.
    """
    return -(targets * logits.log_softmax(-1).masked_fill(targets == 0, 0.0)).sum(-1)


def kl_summands(log_p: Float[Tensor, "*batch n"], log_q: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Compute the summands ``q (log q - log p)`` of a divergence; 0 where ``q`` is 0, and so is their gradient."""
    return log_q.exp() * (log_q - log_p).masked_fill(log_q.isneginf(), 0.0)


def softened_kl(
    student_logits: Float[Tensor, "*batch n"], teacher_logits: Float[Tensor, "*batch n"], *, temperature: float
) -> Float[Tensor, "*batch"]:
    """Compute the Kullback-Leibler divergence of softened distributions (LD, Zheng et al. 2022, equation 4).

    ``T^2 / n * sum_i q_i (log q_i - log p_i)`` with ``p = softmax(student / T)``, ``q = softmax(teacher / T)``.

    The sum over bins is *divided by their number*, as the reference does and its published weights expect: 1/17 of the
    true divergence for edges, 1/C for classes. No gradient reaches the teacher; some of its logits may be ``-inf``.
    """
    log_p = (student_logits / temperature).log_softmax(-1)
    log_q = (teacher_logits.detach() / temperature).log_softmax(-1)
    return temperature**2 * kl_summands(log_p, log_q).mean(-1)
