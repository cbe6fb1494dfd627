"""Bugs planted in ``api``."""

from __future__ import annotations

from tests.mutations.base import OPS, RECORDS, TRAINING, VALUES, Mutation

BUGS = [
    Mutation(
        "lse over padded vocabulary rows",
        "shiq_bench/api/token_stats.py",
        "head = weight[:vocab].to(dtype)",
        "head = weight.to(dtype)",
        f"{OPS}::test_by_hand",
    ),
    Mutation(
        "lse over padded vocabulary rows of a model's own logits",
        "shiq_bench/api/token_stats.py",
        "logits = logits[..., :vocab].to(_wide(logits.dtype))",
        "logits = logits.to(_wide(logits.dtype))",
        f"{OPS}::test_stats_from_logits_leaves_padding_rows_out",
    ),
    Mutation(
        "exact KL over padded vocabulary rows",
        "shiq_bench/api/token_stats.py",
        "log_p = torch.log_softmax(logits_p[..., :vocab].to(_wide(logits_p.dtype)), dim=-1)\n"
        "    log_q = torch.log_softmax(logits_q[..., :vocab].to",
        "log_p = torch.log_softmax(logits_p.to(_wide(logits_p.dtype)), dim=-1)\n"
        "    log_q = torch.log_softmax(logits_q.to",
        f"{OPS}::test_kl_by_hand",
    ),
    Mutation(
        "no gradient through lse",
        "shiq_bench/api/token_stats.py",
        "grad.mul_((grad_lse[rows] - grad_logp[rows])[:, None])",
        "grad.mul_((-grad_logp[rows])[:, None])",
        f"{OPS}::test_equals_the_naive_form[16-64-16-40-33-dtype0]",
    ),
    Mutation(
        "no slope of a soft cap",
        "shiq_bench/api/token_stats.py",
        "grad.mul_(slope)",
        "grad.mul_(1)",
        f"{OPS}::test_gradcheck[1.0-0.5]",
    ),
    Mutation(
        "sign of w",
        "shiq_bench/api/batch.py",
        "return stats.policy.logp - reference_of(stats).logp",
        "return reference_of(stats).logp - stats.policy.logp",
        f"{VALUES}::test_shiq_multi_step",
    ),
    Mutation(
        "rewards so far for rewards to go",
        "shiq_bench/api/batch.py",
        "return x.flip(-1).cumsum(-1).flip(-1)",
        "return x.cumsum(-1)",
        f"{OPS}::test_reductions_by_hand",
    ),
    Mutation(
        "next step wraps around the end",
        "shiq_bench/api/batch.py",
        "torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], dim=-1)",
        "torch.cat([x[..., 1:], x[..., :1]], dim=-1)",
        f"{OPS}::test_reductions_by_hand",
    ),
    Mutation(
        "baseline over the whole batch",
        "shiq_bench/api/batch.py",
        "total = zeros.index_add(0, batch.group, x * batch.weight)\n"
        "    weight = zeros.index_add(0, batch.group, batch.weight.to(x.dtype))",
        "total = zeros + (x * batch.weight).sum()\n    weight = zeros + batch.weight.sum()",
        f"{VALUES}::test_rloo_with_weights_and_alone",
    ),
    Mutation(
        "forced end-of-turn counted as an action",
        "shiq_bench/api/trajectory.py",
        "self.action_mask += [False] * len(token_ids)",
        "self.action_mask += [True] * len(token_ids)",
        f"{RECORDS}::test_a_transcript_keeps_tokens_as_they_were_sampled",
    ),
    Mutation(
        "preferences by return where there is a rank",
        "shiq_bench/api/trajectory.py",
        "return self.total_reward if self.rank is None else self.rank",
        "return self.total_reward",
        f"{TRAINING}::test_which_pairs_by_hand",
    ),
]
