"""Planted bugs, each with the one test that has to catch it; ``tests/test_mutations.py`` plants them in a copy.

A refactoring that moves a text moves it here too: one that is not found exactly once is an error.
"""

from __future__ import annotations

from dataclasses import dataclass

ACROSS = "tests/reporting/test_across.py"
BFCL = "tests/tasks/test_bfcl_official.py"
CATEGORIES = "tests/tasks/test_bfcl_categories.py"
CHAT = "tests/test_chat.py"
COMPARE = "tests/reporting/test_compare.py"
ENGINES = "tests/generation/test_engines.py"
EXACT = "tests/test_exact.py"
FEEDBACK = "tests/tasks/test_ultrafeedback.py"
HEADS = "tests/training/test_heads.py"
LEASES = "tests/sweep/test_leases.py"
LORA = "tests/training/test_lora.py"
LITERAL = "tests/reporting/test_literal.py"
ONPOLICY = "tests/training/test_onpolicy.py"
OPS = "tests/test_ops.py"
RECORDS = "tests/test_records.py"
REPORT = "tests/reporting/test_report.py"
RUN = "tests/test_run.py"
SIMULATIONS = "tests/reporting/test_simulations.py"
TABLES = "tests/reporting/test_tables.py"
TRAINING = "tests/training/test_training.py"
TUNE = "tests/sweep/test_tune.py"
VALUES = "tests/algorithms/test_values.py"
WORKER = "tests/sweep/test_worker.py"
PADDED = f"{TRAINING}::test_layouts_give_the_naive_statistics[padded]"
PACKED = f"{TRAINING}::test_layouts_give_the_naive_statistics[packed]"


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
        name: what is wrong, in a few words.
        file: where, from the project's root.
        old: text that occurs there exactly once.
        new: what stands there instead.
        test: node id of the one test named to catch it, by a failed assertion.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    # --- statistics of tokens ---
    Mutation(
        "labels shifted by one",
        "shiq_bench/training/data.py",
        "row * width + start + i - 1 for i in actions",
        "row * width + start + i for i in actions",
        PADDED,
    ),
    Mutation(
        "prompt token among the actions",
        "shiq_bench/training/data.py",
        "actions = [i for i, a in enumerate(t.action_mask) if a]",
        "actions = [i for i, a in enumerate(t.action_mask) if a or i == 1]",
        PADDED,
    ),
    Mutation(
        "lse over padded vocabulary rows",
        "shiq_bench/ops.py",
        "head = weight[:vocab].to(dtype)",
        "head = weight.to(dtype)",
        f"{OPS}::test_by_hand",
    ),
    Mutation(
        "lse over padded vocabulary rows of a model's own logits",
        "shiq_bench/ops.py",
        "logits = logits[..., :vocab].to(_wide(logits.dtype))",
        "logits = logits.to(_wide(logits.dtype))",
        f"{OPS}::test_stats_from_logits_leaves_padding_rows_out",
    ),
    Mutation(
        "exact KL over padded vocabulary rows",
        "shiq_bench/ops.py",
        "log_p = torch.log_softmax(logits_p[..., :vocab].to(_wide(logits_p.dtype)), dim=-1)\n"
        "    log_q = torch.log_softmax(logits_q[..., :vocab].to",
        "log_p = torch.log_softmax(logits_p.to(_wide(logits_p.dtype)), dim=-1)\n"
        "    log_q = torch.log_softmax(logits_q.to",
        f"{OPS}::test_kl_by_hand",
    ),
    Mutation(
        "policy forgets the size of its vocabulary",
        "shiq_bench/training/policy.py",
        "token_stats(states[0], weight, targets, self.vocab)",
        "token_stats(states[0], weight, targets)",
        PADDED,
    ),
    Mutation(
        "no gradient through lse",
        "shiq_bench/ops.py",
        "grad.mul_((grad_lse[rows] - grad_logp[rows])[:, None])",
        "grad.mul_((-grad_logp[rows])[:, None])",
        f"{OPS}::test_equals_the_naive_form[16-64-16-40-33-dtype0]",
    ),
    Mutation(
        "packing with an all-ones mask",
        "shiq_bench/training/data.py",
        '    if layout == "padded":\n        out["attention_mask"] = attention',
        '    out["attention_mask"] = attention',
        PACKED,
    ),
    Mutation(
        "positions run on through a packed row",
        "shiq_bench/training/data.py",
        "positions[row, span] = torch.arange(lengths[n])",
        "positions[row, span] = start + torch.arange(lengths[n])",
        PACKED,
    ),
    Mutation(
        "reference with dropout",
        "shiq_bench/training/reference.py",
        "    policy.eval()\n",
        "",
        f"{TRAINING}::test_a_reference_has_no_dropout",
    ),
    Mutation(
        "frozen companions with dropout",
        "shiq_bench/training/companions.py",
        "copy.deepcopy(policy, shared).requires_grad_(False).eval()",
        "copy.deepcopy(policy, shared).requires_grad_(False)",
        f"{HEADS}::test_stats_come_from_whom_they_should",
    ),
    # --- reductions ---
    Mutation(
        "sign of w",
        "shiq_bench/ops.py",
        "return stats.policy.logp - reference_of(stats).logp",
        "return reference_of(stats).logp - stats.policy.logp",
        f"{VALUES}::test_shiq_multi_step",
    ),
    Mutation(
        "rewards so far for rewards to go",
        "shiq_bench/ops.py",
        "return x.flip(-1).cumsum(-1).flip(-1)",
        "return x.cumsum(-1)",
        f"{OPS}::test_reductions_by_hand",
    ),
    Mutation(
        "next step wraps around the end",
        "shiq_bench/ops.py",
        "torch.cat([x[..., 1:], torch.zeros_like(x[..., :1])], dim=-1)",
        "torch.cat([x[..., 1:], x[..., :1]], dim=-1)",
        f"{OPS}::test_reductions_by_hand",
    ),
    Mutation(
        "next step across the padding",
        "algorithms/qsft.py",
        "next_step(stats.max_ratio * batch.mask)",
        "next_step(stats.max_ratio)",
        f"{VALUES}::test_qsft_clips_its_label",
    ),
    Mutation(
        "baseline over the whole batch",
        "shiq_bench/ops.py",
        "total = zeros.index_add(0, batch.group, x * batch.weight)\n"
        "    weight = zeros.index_add(0, batch.group, batch.weight.to(x.dtype))",
        "total = zeros + (x * batch.weight).sum()\n    weight = zeros + batch.weight.sum()",
        f"{VALUES}::test_rloo_with_weights_and_alone",
    ),
    # --- losses ---
    Mutation(
        "stop-gradient on d_v",
        "algorithms/shiq.py",
        "value = self.beta * lse * batch.mask",
        "value = (self.beta * lse * batch.mask).detach()",
        f"{VALUES}::test_shiq_multi_step",
    ),
    Mutation(
        "stop-gradient on the next d_v",
        "algorithms/shiq.py",
        "gain + next_step(value)",
        "gain + next_step(value.detach())",
        f"{VALUES}::test_shiq_one_step",
    ),
    Mutation(
        "ShiQ forgets beta before w",
        "algorithms/shiq.py",
        "gain = batch.rewards - self.beta * w",
        "gain = batch.rewards - w",
        f"{VALUES}::test_shiq_multi_step",
    ),
    Mutation(
        "ShiQ forgets the shift",
        "algorithms/shiq.py",
        "lse = stats.policy.lse - reference_of(stats).lse if self.shift else stats.policy.lse",
        "lse = stats.policy.lse",
        f"{VALUES}::test_shiq_unshifted_differs_only_by_the_reference_value",
    ),
    Mutation(
        "DPO forgets beta",
        "algorithms/dpo.py",
        "margin = self.beta * (w[batch.pairs[:, 0]]",
        "margin = (w[batch.pairs[:, 0]]",
        f"{VALUES}::test_dpo",
    ),
    Mutation(
        "DPO takes means for sums",
        "algorithms/dpo.py",
        "w = log_ratio(stats).sum(-1)",
        "w = log_ratio(stats).mean(-1)",
        f"{VALUES}::test_dpo",
    ),
    Mutation(
        "DPO swaps its pairs",
        "algorithms/dpo.py",
        "(w[batch.pairs[:, 0]] - w[batch.pairs[:, 1]])",
        "(w[batch.pairs[:, 1]] - w[batch.pairs[:, 0]])",
        f"{VALUES}::test_dpo",
    ),
    Mutation(
        "SimPO takes sums for means",
        "algorithms/simpo.py",
        "(stats.policy.logp * batch.mask).sum(-1) / batch.mask.sum(-1).clamp(min=1)",
        "(stats.policy.logp * batch.mask).sum(-1)",
        f"{VALUES}::test_simpo",
    ),
    Mutation(
        "SimPO takes means over the padding",
        "algorithms/simpo.py",
        "batch.mask.sum(-1).clamp(min=1)",
        "batch.mask.shape[-1]",
        f"{VALUES}::test_simpo",
    ),
    Mutation(
        "IPO's 1 / (2 beta) as 1 / beta",
        "algorithms/ipo.py",
        "(margin - 0.5 / self.beta).square()",
        "(margin - 1 / self.beta).square()",
        f"{VALUES}::test_ipo",
    ),
    Mutation(
        "KTO's estimate with gradient",
        "algorithms/kto.py",
        "elsewhere = log_ratio(stats.mismatched).sum(-1).detach()",
        "elsewhere = log_ratio(stats.mismatched).sum(-1)",
        f"{VALUES}::test_kto",
    ),
    Mutation(
        "KTO's estimate below 0",
        "algorithms/kto.py",
        "clamp(min=1e-12)).clamp(min=0)",
        "clamp(min=1e-12))",
        f"{VALUES}::test_kto_estimates_no_negative_kl",
    ),
    Mutation(
        "CoPG forgets beta",
        "algorithms/copg.py",
        "gain = returns - self.beta * log_ratio(stats).sum(-1)",
        "gain = returns - log_ratio(stats).sum(-1)",
        f"{VALUES}::test_copg_and_rebel[copg]",
    ),
    Mutation(
        "REBEL adds the relative reward",
        "algorithms/rebel.py",
        "(w[first] - w[second]) - (returns[first] - returns[second])",
        "(w[first] - w[second]) + (returns[first] - returns[second])",
        f"{VALUES}::test_copg_and_rebel[rebel]",
    ),
    Mutation(
        "V detached in DRO",
        "algorithms/dro.py",
        "value = stats.value[:, 0]",
        "value = stats.value[:, 0].detach()",
        f"{VALUES}::test_dro",
    ),
    Mutation(
        "DRO reads V behind the prompt",
        "algorithms/dro.py",
        "value = stats.value[:, 0]",
        "value = stats.value[:, -1]",
        f"{VALUES}::test_dro",
    ),
    Mutation(
        "RWR forgets its temperature",
        "algorithms/rwr.py",
        ".clamp(max=0) / self.beta).exp()",
        ".clamp(max=0)).exp()",
        f"{VALUES}::test_rwr",
    ),
    Mutation(
        "REINFORCE differentiates its own reward",
        "algorithms/reinforce.py",
        "w = log_ratio(stats).detach()",
        "w = log_ratio(stats)",
        f"{VALUES}::test_reinforce",
    ),
    Mutation(
        "RLOO leaves none out",
        "algorithms/rloo.py",
        "(gain - group_mean(gain, batch)) / (1 - alone).clamp(min=1e-6)",
        "gain - group_mean(gain, batch)",
        f"{VALUES}::test_rloo",
    ),
    Mutation(
        "GRPO clips what it should keep",
        "algorithms/grpo.py",
        "torch.minimum(ratio * advantage, held * advantage)",
        "held * advantage",
        f"{VALUES}::test_grpo",
    ),
    Mutation(
        "Q-SFT without clip",
        "algorithms/qsft.py",
        "y = backup.clamp(0, 1)",
        "y = backup",
        f"{VALUES}::test_qsft_clips_its_label",
    ),
    Mutation(
        "Q-SFT shares the rest among all actions",
        "algorithms/qsft.py",
        "max(stats.actions - 1, 1)",
        "stats.actions",
        f"{VALUES}::test_qsft",
    ),
    Mutation(
        "expectile on the wrong side",
        "algorithms/ilql.py",
        "torch.where(u < 0,",
        "torch.where(u > 0,",
        f"{VALUES}::test_ilql",
    ),
    Mutation(
        "ILQL differentiates its backup",
        "algorithms/ilql.py",
        "next_step(value.detach())",
        "next_step(value)",
        f"{VALUES}::test_ilql",
    ),
    # --- what a loss is fed with ---
    Mutation(
        "reward at the wrong token",
        "shiq_bench/training/data.py",
        "rewards = [r for r, a in zip(t.rewards, t.action_mask, strict=True) if a]",
        "rewards = sorted(r for r, a in zip(t.rewards, t.action_mask, strict=True) if a)",
        f"{TRAINING}::test_a_batch_by_hand",
    ),
    Mutation(
        "mean return taken off the first action",
        "shiq_bench/training/data.py",
        "rewards[-1] -= row.reward_shift",
        "rewards[0] -= row.reward_shift",
        f"{TRAINING}::test_a_batch_by_hand",
    ),
    Mutation(
        "reward of a turn at the end of its first answer",
        "tasks/bfcl/dialogue.py",
        "if completion.token_ids:",
        "if completion.token_ids and self.turn not in self.turn_end:",
        f"{BFCL}::test_credit_reaches_the_trajectory",
    ),
    Mutation(
        "unit reward scaling forgotten",
        "shiq_bench/training/data.py",
        "rewards=tuple(r / largest for r in t.rewards)",
        "rewards=tuple(r for r in t.rewards)",
        f"{TRAINING}::test_returns_are_brought_into_the_unit_range_where_a_method_asks",
    ),
    Mutation(
        "fixed point of a table without unit reward scaling",
        "shiq_bench/table_run.py",
        "replace(w, rewards=w.rewards / task.largest_return) if unit else w",
        "w",
        f"{RUN}::test_a_table_is_trained_on_unit_returns_and_judged_on_its_own",
    ),
    Mutation(
        "pair order swapped",
        "shiq_bench/training/data.py",
        "for pair, weight in (((i, j), both * p), ((j, i), both * (1 - p))):",
        "for pair, weight in (((j, i), both * p), ((i, j), both * (1 - p))):",
        f"{TRAINING}::test_pairs_by_hand",
    ),
    Mutation(
        "Bradley-Terry probability reversed",
        "shiq_bench/training/data.py",
        'p = _sigma(gap) if labels == "bradley_terry"',
        'p = _sigma(-gap) if labels == "bradley_terry"',
        f"{TRAINING}::test_pairs_by_hand",
    ),
    Mutation(
        "drawn preferences reversed",
        "shiq_bench/training/data.py",
        "p = float(coins[i, j] < _sigma(gap))",
        "p = float(coins[i, j] > _sigma(gap))",
        f"{TRAINING}::test_sampled_pairs_follow_bradley_and_terry",
    ),
    Mutation(
        "one coin for every seed",
        "shiq_bench/training/data.py",
        "seed_of(group[0].prompt_id, what, seed)",
        "seed_of(group[0].prompt_id, what)",
        f"{TRAINING}::test_sampled_pairs_follow_bradley_and_terry",
    ),
    Mutation(
        "desirable whatever the prompt's mean",
        "shiq_bench/training/data.py",
        "gaps = [t.merit - mean for t in group]",
        "gaps = [t.merit for t in group]",
        f"{TRAINING}::test_labels_by_hand",
    ),
    Mutation(
        "labels against a mean without weights",
        "shiq_bench/training/data.py",
        "mean = sum(t.weight * t.merit for t in group) / sum(t.weight for t in group)",
        "mean = sum(t.merit for t in group) / len(group)",
        f"{TRAINING}::test_labels_by_hand",
    ),
    Mutation(
        "mean return without weights",
        "shiq_bench/training/data.py",
        "total.get(t.prompt_id, 0.0) + t.weight * t.total_reward",
        "total.get(t.prompt_id, 0.0) + t.total_reward",
        f"{TRAINING}::test_centring_takes_the_prompts_mean_off_the_last_action",
    ),
    Mutation(
        "mismatched answers from the same prompt",
        "shiq_bench/training/data.py",
        "zip(groups, [*groups[1:], groups[0]], strict=True)",
        "zip(groups, groups, strict=True)",
        f"{TRAINING}::test_mismatched_answers_are_another_prompts",
    ),
    # --- turns and their ends ---
    Mutation(
        "forced end-of-turn counted as an action",
        "shiq_bench/records.py",
        "self.action_mask += [False] * len(token_ids)",
        "self.action_mask += [True] * len(token_ids)",
        f"{RECORDS}::test_a_transcript_keeps_tokens_as_they_were_sampled",
    ),
    Mutation(
        "end-of-turn forced on a turn that has one",
        "shiq_bench/chat.py",
        "return ids if ended else [forced, *ids]",
        "return [forced, *ids]",
        f"{CHAT}::test_tiny_template",
    ),
    Mutation(
        "missing end-of-turn left missing",
        "shiq_bench/chat.py",
        "return ids if ended else [forced, *ids]",
        "return ids",
        f"{CHAT}::test_tiny_template",
    ),
    Mutation(
        "demonstrations without an end-of-turn",
        "shiq_bench/chat.py",
        "return [*self._encode(text), self.end_ids[0]]",
        "return self._encode(text)",
        f"{CHAT}::test_answers_come_back[f(x=1)]",
    ),
    Mutation(
        "cut answer taken for an ended one",
        "tasks/bfcl/dialogue.py",
        'self._ended = completion.finish == "stop"',
        "self._ended = True",
        f"{BFCL}::test_an_answer_cut_by_its_limit_is_taken_as_it_is",
    ),
    # --- BFCL whole ---
    Mutation(
        "final reward paid as it is earned",
        "tasks/bfcl/__init__.py",
        'if self.reward == "turn":',
        "if self.reward:",
        f"{CATEGORIES}::test_final_reward_is_the_same_sum_paid_at_the_end",
    ),
    Mutation(
        "an entry that does not fit is right to say nothing",
        "tasks/bfcl/__init__.py",
        'UNFIT = {"valid": False, "error_type": "unfit", "partial": 0.0}',
        'UNFIT = {"valid": False, "error_type": "", "partial": 0.0}',
        f"{CATEGORIES}::test_an_entry_that_does_not_fit_is_counted_with_its_length",
    ),
    Mutation(
        "calls in an empty turn not counted",
        "tasks/bfcl/__init__.py",
        "any(calls and not gold for",
        "any(calls and gold is None for",
        f"{CATEGORIES}::test_a_call_in_an_empty_turn_passes_and_is_counted",
    ),
    Mutation(
        "held-out functions offered from the start",
        "tasks/bfcl/data.py",
        'return [f for f in self.functions if f["name"] not in later]',
        "return [f for f in self.functions if later is not None]",
        f"{CATEGORIES}::test_held_out_functions_come_at_their_turn",
    ),
    Mutation(
        "calls in a model's reasoning judged",
        "tasks/bfcl/dialogue.py",
        "return text.rpartition(THOUGHT)[2]",
        "return text",
        f"{CATEGORIES}::test_reasoning_is_not_judged",
    ),
    Mutation(
        "live score unweighted",
        "tasks/bfcl/aggregate.py",
        'BY_ENTRIES = ("live_ast", "live")',
        'BY_ENTRIES = ("live_ast",)',
        "tests/tasks/test_bfcl_aggregate.py::test_scores_are_the_official_ones",
    ),
    Mutation(
        "state of a long context left to the next entry",
        "tasks/bfcl/official.py",
        "setattr(self._travel, name, copy.deepcopy(value))",
        "setattr(self._travel, name, value)",
        "tests/tasks/test_bfcl_differential.py::test_the_order_of_entries_does_not_matter",
    ),
    Mutation(
        "parallel calls in another order",
        "shiq_bench/toolcalls.py",
        "return [call for call in calls if call.name not in format.idle] or None",
        "return [call for call in calls[::-1] if call.name not in format.idle] or None",
        "tests/test_toolcalls.py::test_several_calls_are_read_in_order",
    ),
    Mutation(
        "training on held-out prompts of a dataset",
        "shiq_bench/dataset.py",
        'allowed, vocabulary = set(task.prompts("rl")), len(tokenizer)',
        'allowed, vocabulary = set(task.prompts("rl") + task.prompts("heldout")), len(tokenizer)',
        "tests/test_dataset.py::test_held_out_prompts_are_refused",
    ),
    # --- oracles ---
    Mutation(
        "soft optimum without the reference",
        "shiq_bench/exact.py",
        "scores = log_rho[rows] + (world.rewards[rows]",
        "scores = (world.rewards[rows]",
        f"{EXACT}::test_soft_optimum_is_the_tilted_reference[tree-0.1]",
    ),
    Mutation(
        "KL the other way round",
        "shiq_bench/exact.py",
        "p * (log_p - log_q)",
        "np.exp(log_q) * (log_q - log_p)",
        f"{EXACT}::test_expectations_agree_with_enumeration[tree]",
    ),
    Mutation(
        "oracle's expectile on the wrong side",
        "shiq_bench/exact.py",
        "np.where(values < v, 1 - expectile, expectile)",
        "np.where(values > v, 1 - expectile, expectile)",
        f"{EXACT}::test_expectile_backup_meets_its_conditions[tree-1.0-0.7-0.0]",
    ),
    Mutation(
        "oracle ignores the behaviour's floor",
        "shiq_bench/exact.py",
        "proposed = (log_mu >= np.log(floor)) if floor > 0 else (mu > 0)",
        "proposed = mu > 0",
        f"{EXACT}::test_behaviour_backup_is_where_its_operator_stays[tree-0.9-0.21]",
    ),
    # --- tables ---
    Mutation(
        "target of tables never updated",
        "shiq_bench/training/tabular.py",
        "table.lerp_(trained[name], need_target.tau)",
        "pass",
        f"{HEADS}::test_a_tables_target_and_reference_do_the_same",
    ),
    Mutation(
        "reference of tables never refreshed",
        "shiq_bench/training/tabular.py",
        'fixed["reference"] = trained["logits"].clone()',
        "pass",
        f"{HEADS}::test_a_tables_target_and_reference_do_the_same",
    ),
    Mutation(
        "tables ignore the behaviour's floor",
        "shiq_bench/training/tabular.py",
        "math.log(max(ratio.floor, 10 * LEAST))",
        "math.log(10 * LEAST)",
        f"{HEADS}::test_max_ratio_of_a_table[0.3-0.5]",
    ),
    Mutation(
        "enumerated data of a stale table",
        "shiq_bench/training/tabular.py",
        'data = enumerated_fresh(tables, trained["logits"])',
        'data = enumerated_fresh(tables, fixed["reference"])',
        f"{ONPOLICY}::test_data_of_tables_come_from_the_tables_of_the_update[enumerated]",
    ),
    Mutation(
        "samples of a stale table",
        "shiq_bench/training/tabular.py",
        'data = sampled_fresh(tables, trained["logits"], draws, generator)',
        'data = sampled_fresh(tables, fixed["reference"], draws, generator)',
        f"{ONPOLICY}::test_data_of_tables_come_from_the_tables_of_the_update[sampled]",
    ),
    # --- training ---
    Mutation(
        "target network never updated",
        "shiq_bench/training/companions.py",
        "old.lerp_(new, self.tau)",
        "pass",
        f"{HEADS}::test_the_target_follows_by_polyak_averages_and_the_reference_by_jumps",
    ),
    Mutation(
        "target network keeps tau of itself",
        "shiq_bench/training/companions.py",
        "old.lerp_(new, self.tau)",
        "old.lerp_(new, 1 - self.tau)",
        f"{HEADS}::test_the_target_follows_by_polyak_averages_and_the_reference_by_jumps",
    ),
    Mutation(
        "reference never refreshed",
        "shiq_bench/training/companions.py",
        "old.copy_(new)",
        "pass",
        f"{HEADS}::test_the_target_follows_by_polyak_averages_and_the_reference_by_jumps",
    ),
    Mutation(
        "behaviour floor ignored",
        "shiq_bench/training/policy.py",
        ".exp().where(theirs.exp() >= floor, 0).amax(-1)",
        ".exp().amax(-1)",
        f"{HEADS}::test_max_ratio[plain-0.05]",
    ),
    Mutation(
        "local instead of global count",
        "shiq_bench/training/trainer.py",
        "* self.accelerator.num_processes / num_items_in_batch",
        "/ self.algorithm.count(batch) / self.args.gradient_accumulation_steps",
        f"{TRAINING}::test_six_prompts_at_once_equal_six_times_one[sft]",
    ),
    Mutation(
        "count of the first micro-batch for all",
        "shiq_bench/training/trainer.py",
        "total = torch.stack(counts).sum().to(device)",
        "total = counts[0].to(device)",
        f"{TRAINING}::test_six_prompts_at_once_equal_six_times_one[sft]",
    ),
    Mutation(
        "autocast left on after training",
        "shiq_bench/training/trainer.py",
        "trainer.accelerator.unwrap_model(policy, keep_fp32_wrapper=False)",
        "pass",
        f"{TRAINING}::test_scoring_after_bf16_training_is_float32",
    ),
    # --- sampling ---
    Mutation(
        "temperature in scoring",
        "shiq_bench/generation/hf.py",
        "self.logps.append(logp.gather(",
        "self.logps.append((logp / (self.temperature or 1)).log_softmax(-1).gather(",
        f"{ENGINES}::test_logprobs_are_the_models_at_temperature_one[0.6-hf]",
    ),
    Mutation(
        "temperature not in sampling",
        "shiq_bench/generation/hf.py",
        "(logp.double() / self.temperature)",
        "logp.double()",
        f"{ENGINES}::test_samples_follow_the_distribution[0.6-hf]",
    ),
    Mutation(
        "sampled end-of-turn dropped",
        "shiq_bench/generation/hf.py",
        "Completion(tuple(tokens[: n + 1]), tuple(logps[: n + 1])",
        "Completion(tuple(tokens[:n]), tuple(logps[:n])",
        f"{ENGINES}::test_stops_and_limits[hf]",
    ),
    Mutation(
        "sampler keeps its first weights",
        "shiq_bench/generation/hf.py",
        "        check_weights(folder)\n        self._model = None\n",
        "        check_weights(folder)\n        if self._model is not None:\n            return\n",
        f"{ENGINES}::test_load_takes_new_weights_and_forgets_old_prefixes[hf]",
    ),
    Mutation(
        "on-policy samples from stale weights",
        "shiq_bench/run.py",
        "self._serving != folder or stale",
        "self._serving != folder",
        f"{ONPOLICY}::test_the_main_job_draws_from_the_weights_of_the_update",
    ),
    Mutation(
        "on-policy weights written once",
        "shiq_bench/language_run.py",
        "        policy.model.save_pretrained(scratch)\n",
        "        if step == 0:\n            policy.model.save_pretrained(scratch)\n",
        f"{ONPOLICY}::test_the_main_job_draws_from_the_weights_of_the_update",
    ),
    # --- adapters ---
    Mutation(
        "reference with adapters on",
        "shiq_bench/training/lora.py",
        "        with self.policy.model.disable_adapter():\n            out: dict",
        "        if True:\n            out: dict",
        f"{LORA}::test_adapters_begin_as_nothing_and_switch_off_to_the_bit[plain]",
    ),
    Mutation(
        "sampler keeps its first adapter",
        "shiq_bench/generation/vllm.py",
        "self._adapter = (next(_ADAPTERS), folder)",
        "self._adapter = (1, folder)",
        f"{LORA}::test_what_is_served_is_what_was_trained[vllm]",
    ),
    # --- preferences and rewards ---
    Mutation(
        "stored answers cut with their end of turn",
        "tasks/ultrafeedback/__init__.py",
        "    kept = tuple(ids[:limit])\n",
        "    kept = (*ids[: limit - 1], ids[-1])\n",
        f"{FEEDBACK}::test_stored_answers_end_as_sampled_ones_do[llama_tokenizer]",
    ),
    Mutation(
        "the rejected answer ranked first",
        "tasks/ultrafeedback/data.py",
        "Answer(t, float(1 - i), s)",
        "Answer(t, float(i), s)",
        f"{FEEDBACK}::test_every_schema_and_every_file_hold_the_same_questions[plain-jsonl]",
    ),
    Mutation(
        "preferences by return where there is a rank",
        "shiq_bench/records.py",
        "return self.total_reward if self.rank is None else self.rank",
        "return self.total_reward",
        f"{TRAINING}::test_which_pairs_by_hand",
    ),
    Mutation(
        "length left uncontrolled",
        "shiq_bench/reporting/statistics.py",
        "np.tanh(g / spread) if spread else np.zeros_like(g)",
        "np.zeros_like(g)",
        "tests/reporting/test_statistics.py::test_length_control_recovers_the_rate_at_equal_length",
    ),
    Mutation(
        "wins against the reference by length",
        "tasks/ultrafeedback/__init__.py",
        'wins = [_beats(e["reward"], other["reward"]) for e, other in met]',
        'wins = [_beats(e["details"]["characters"], other["details"]["characters"]) for e, other in met]',
        f"{FEEDBACK}::test_win_rates_by_hand",
    ),
    Mutation(
        "reward model fitted to the wrong order",
        "shiq_bench/rewards/fit.py",
        "-logsigmoid(chosen - rejected)",
        "-logsigmoid(rejected - chosen)",
        f"{FEEDBACK}::test_a_reward_model_pays_fresh_answers_and_orders_stored_ones",
    ),
    # --- the report ---
    Mutation(
        "markup in a record closes the page's script",
        "shiq_bench/reporting/report.py",
        'text.replace("<", "\\\\u003c")',
        "text",
        f"{REPORT}::test_nothing_in_the_data_is_html",
    ),
    Mutation(
        "a script that its page forbids",
        "shiq_bench/reporting/report.py",
        "policy=_policy([*scripts, plotly])",
        "policy=_policy([*scripts[1:], plotly])",
        f"{REPORT}::test_only_its_own_scripts_may_run",
    ),
    Mutation(
        "page dated by its packs",
        "shiq_bench/reporting/payload.py",
        "gzip.compress(data, _LEVEL, mtime=0)",
        "gzip.compress(data, _LEVEL)",
        f"{REPORT}::test_the_same_value_is_the_same_pack_at_any_time",
    ),
    Mutation(
        "a method's row shows the episodes of its reference",
        "shiq_bench/reporting/payload.py",
        'if e["policy"] == "trained"\n        }',
        'if e["policy"] == "reference"\n        }',
        f"{REPORT}::test_a_row_leads_to_its_runs_and_they_to_their_episodes",
    ),
    Mutation(
        "the reference's number leads to a run that failed",
        "shiq_bench/reporting/payload.py",
        'key=lambda r: (r.status != "done", r.run_id))',
        'key=lambda r: (r.status == "done", r.run_id))',
        f"{REPORT}::test_the_reference_has_the_runs_that_measured_it",
    ),
    Mutation(
        "a curve that hides how few runs it is of",
        "shiq_bench/reporting/curves.py",
        '"fewest": min(',
        '"fewest": max(',
        f"{REPORT}::test_a_curve_tells_the_fewest_runs_behind_a_mean",
    ),
    Mutation(
        "episodes left out and not counted",
        "shiq_bench/reporting/payload.py",
        "if prompt not in kept and len(kept) == self.limits.prompts:\n                left_out += 1",
        "if prompt not in kept and len(kept) == self.limits.prompts:\n                left_out += 0",
        f"{REPORT}::test_what_is_too_much_is_left_out_and_counted",
    ),
    Mutation(
        "curve of the first seed alone",
        "shiq_bench/reporting/curves.py",
        "mean_ci_t(_finite(x[s].get(name)) for x in logged)",
        "mean_ci_t(_finite(x[s].get(name)) for x in logged[:1])",
        f"{REPORT}::test_learning_curves_are_means_over_seeds",
    ),
    Mutation(
        "a method's own number in the place of its difference",
        "shiq_bench/reporting/payload.py",
        "zip((block.cells, block.differences), texts, best, strict=True)",
        "zip((block.cells, block.cells), texts[:1] * 2, best, strict=True)",
        f"{REPORT}::test_the_leaderboard_is_the_table",
    ),
    Mutation(
        "stale prefix cache after new weights",
        "shiq_bench/generation/vllm.py",
        "if not self._llm.reset_prefix_cache():",
        "if not self._llm:",
        f"{ENGINES}::test_load_takes_new_weights_and_forgets_old_prefixes[vllm]",
    ),
    # --- leases and sweeps ---
    Mutation(
        "a lease that is there is taken all the same",
        "shiq_bench/leases.py",
        "                if not _dead(path, lock.now()):\n",
        "                if False:\n",
        f"{LEASES}::test_one_of_many_gets_it_and_one_of_many_follows_the_dead",
    ),
    Mutation(
        "a dead holder keeps its lease",
        "shiq_bench/leases.py",
        'return _born(int(who["pid"])) != who["born"]',
        "return False",
        f"{LEASES}::test_a_number_that_is_used_again_is_not_the_holder",
    ),
    Mutation(
        "a silent machine is waited for in all eternity",
        "shiq_bench/leases.py",
        "return now - touched > TTL",
        "return False",
        f"{LEASES}::test_another_machine_is_dead_once_it_is_silent_for_long[240.0-True]",
    ),
    Mutation(
        "who was thought dead gives back another's lease",
        "shiq_bench/leases.py",
        "            if self._ours():\n                self.path.unlink()",
        "            if True:\n                self.path.unlink()",
        f"{LEASES}::test_who_was_thought_dead_must_not_write_and_takes_nothing_back",
    ),
    Mutation(
        "no sign of life",
        "shiq_bench/leases.py",
        "                os.utime(self._descriptor)\n",
        "                pass\n",
        f"{LEASES}::test_a_holder_gives_signs_of_life",
    ),
    Mutation(
        "a run is written that another process has",
        "shiq_bench/run.py",
        "            self.lease.check()\n",
        "            pass\n",
        f"{WORKER}::test_a_lost_lease_ends_the_run_without_a_record",
    ),
    Mutation(
        "what failed is tried again unasked",
        "shiq_bench/sweep/worker.py",
        'return record.status == "done" or not retry',
        'return record.status == "done"',
        f"{WORKER}::test_what_failed_is_tried_again_once_and_only_when_asked[failed]",
    ),
    Mutation(
        "what was found before the claim decides",
        "shiq_bench/run.py",
        "if done := _earlier(run, resume, fresh) if needed() else runs.load(run.folder):",
        "if done := _earlier(run, resume, fresh):",
        f"{WORKER}::test_a_claimed_run_that_is_needed_no_more_stays_as_it_is",
    ),
    Mutation(
        "whatever is there is replaced",
        "shiq_bench/run.py",
        'if not same_code and fresh == "foreign":',
        'if fresh == "foreign":',
        f"{WORKER}::test_what_this_code_left_is_gone_on_from",
    ),
    Mutation(
        "a lost run is said to have failed",
        "shiq_bench/run.py",
        "            if run.lease.held:",
        "            if True:",
        f"{WORKER}::test_a_lost_lease_ends_the_run_without_a_record",
    ),
    Mutation(
        "a machine that slept loses its runs",
        "shiq_bench/leases.py",
        'if who.get("where") == _where() and who.get("born") != "unknown":',
        "if False:",
        f"{LEASES}::test_one_that_was_suspended_here_is_alive",
    ),
    Mutation(
        "a dead holder is followed without a lock",
        "shiq_bench/leases.py",
        "                if not lock.real and path.exists():\n",
        "                if False:\n",
        f"{LEASES}::test_without_locks_a_dead_holder_is_not_followed",
    ),
    Mutation(
        "what diverged is chosen by the rest",
        "shiq_bench/sweep/tune.py",
        'if best is None or any(e.get("diverged") for e in best.examples):',
        "if best is None:",
        f"{TUNE}::test_who_diverged_somewhere_is_not_chosen_for_where_it_did_not",
    ),
    Mutation(
        "the worst candidate is chosen",
        "shiq_bench/sweep/tune.py",
        'sign = -1 if metric.better == "lower" else 1',
        'sign = 1 if metric.better == "lower" else -1',
        f"{TUNE}::test_the_best_on_validation_is_chosen_and_everything_is_kept",
    ),
    Mutation(
        "tuned on the instances that are reported",
        "shiq_bench/sweep/tune.py",
        "range(max(seeds) + 1, max(seeds) + 1 + len(seeds))",
        "range(min(seeds), min(seeds) + len(seeds))",
        f"{TUNE}::test_tables_are_validated_on_instances_behind_the_reported_ones",
    ),
    # --- tables, and statistics over seeds and tasks ---
    Mutation(
        "interquartile mean cuts a tenth",
        "shiq_bench/reporting/across.py",
        "cut = x.shape[-1] // 4",
        "cut = x.shape[-1] // 10",
        f"{ACROSS}::test_interquartile_mean_is_scipys_trimmed_mean[6]",
    ),
    Mutation(
        "ties count for nobody",
        "shiq_bench/reporting/across.py",
        "return (x[:, None] > y) + 0.5 * (x[:, None] == y)",
        "return (x[:, None] > y) + 0.0 * (x[:, None] == y)",
        f"{ACROSS}::test_probability_of_improvement_by_hand",
    ),
    Mutation(
        "seeds of the other method are not resampled",
        "shiq_bench/reporting/across.py",
        "right = _counts(b[task].size, generator, resamples)",
        "right = np.ones((resamples, b[task].size))",
        f"{ACROSS}::test_both_sides_are_resampled",
    ),
    Mutation(
        "crossed t interval of seeds alone",
        "shiq_bench/reporting/statistics.py",
        "variance = max(a + b - e, a, b) if np.ptp(x) else 0.0",
        "variance = a if np.ptp(x) else 0.0",
        f"{SIMULATIONS}::test_crossed_t_covers[20-prompts differ]",
    ),
    Mutation(
        "best of the methods without the exact test",
        "shiq_bench/reporting/significance.py",
        "return p is not None and p < ALPHA",
        "return True",
        f"{TABLES}::test_a_lead_that_one_seed_contradicts_is_not_bold_at_six",
    ),
    Mutation(
        "best of the methods by its lead over the worst",
        "shiq_bench/reporting/significance.py",
        "for other in order[1:]):",
        "for other in order[-1:]):",
        f"{SIMULATIONS}::test_bold_numbers_of_equal_methods_are_rare[normal-10-7]",
    ),
    Mutation(
        "best of the methods by its lead over the runner-up",
        "shiq_bench/reporting/significance.py",
        "for other in order[1:]):",
        "for other in order[1:2]):",
        f"{SIMULATIONS}::test_the_best_leads_every_other_and_not_the_runner_up_alone",
    ),
    Mutation(
        "p against the best with Holm over those comparisons alone",
        "shiq_bench/reporting/significance.py",
        "every = [*pairs, *combinations([k for k in scores if k != order[0]], 2)]",
        "every = pairs",
        f"{TABLES}::test_p_is_exact_over_paired_seeds_and_adjusted_over_all_pairs_of_methods",
    ),
    Mutation(
        "a single seed is the best of its row",
        "shiq_bench/reporting/significance.py",
        "order = ranked(scores, 2)",
        "order = ranked(scores)",
        f"{TABLES}::test_who_lost_runs_is_not_bold_and_a_lucky_survivor_is_not_the_best",
    ),
    Mutation(
        "bold on survivors",
        "shiq_bench/reporting/comparison.py",
        "(best if len(scores[first]) == asked[first] else unmarked)",
        "best",
        f"{TABLES}::test_who_lost_runs_is_not_bold_and_a_lucky_survivor_is_not_the_best",
    ),
    Mutation(
        "p of the difference to the reference over seeds alone",
        "shiq_bench/reporting/comparison.py",
        "(sign_p(by_unit) if alone else crossed, len(by_unit))",
        "(sign_p(by_unit), len(by_unit))",
        f"{TABLES}::test_differences_to_the_reference_are_tested_over_seeds_and_prompts",
    ),
    Mutation(
        "intervals of several seeds over their means alone",
        "shiq_bench/reporting/comparison.py",
        "if crossed is not None and np.isclose(",
        "if crossed is None and np.isclose(",
        f"{TABLES}::test_several_seeds_are_a_t_interval_over_them_and_their_prompts",
    ),
    Mutation(
        "prompts of a rate by their own rates",
        "shiq_bench/reporting/statistics.py",
        "rate + len(influence) * e for g, e in influence.items()}",
        "rate + e for g, e in influence.items()}",
        f"{TABLES}::test_several_seeds_are_a_t_interval_over_them_and_their_prompts",
    ),
    Mutation(
        "degrees of freedom of seeds alone",
        "shiq_bench/reporting/statistics.py",
        "return self.units - 1 if self.freedom is None else self.freedom",
        "return self.units - 1",
        f"{TABLES}::test_differences_to_the_reference_are_tested_over_seeds_and_prompts",
    ),
    Mutation(
        "an option that hides behind a setting of its name",
        "shiq_bench/reporting/blocks.py",
        """f"{which}.{k}" if k in settings else k: v""",
        """k: v""",
        f"{COMPARE}::test_options_called_like_a_setting_are_told_apart",
    ),
    Mutation(
        "one method's fixed point as every method's",
        "shiq_bench/reporting/comparison.py",
        "if not metric.own and (shown := ",
        "if (shown := ",
        f"{TABLES}::test_what_is_measured_against_a_methods_own_target_has_no_reference_and_no_best",
    ),
    Mutation(
        "prompts without a trial are shared",
        "shiq_bench/reporting/compare.py",
        "shared = prompts_with(b.examples, metric)",
        """shared = {e["prompt_id"] for e in b.examples}""",
        f"{COMPARE}::test_prompts_without_a_trial_on_either_side_are_not_shared",
    ),
    Mutation(
        "seeds that one alone has measured are counted",
        "shiq_bench/reporting/compare.py",
        "difference, over, p, prompts, len(known))",
        "difference, over, p, prompts, len(pairs))",
        f"{COMPARE}::test_seeds_are_those_that_both_measured",
    ),
    Mutation(
        "a model's image in Markdown",
        "shiq_bench/reporting/literal.py",
        r"""text = _MARKS.sub(r"\\\g<0>", in_line(text).strip())""",
        "text = in_line(text).strip()",
        f"{LITERAL}::test_two_compared_in_markdown",
    ),
    Mutation(
        "a method's name is a formula",
        "shiq_bench/reporting/literal.py",
        """return ("'" if formula else "") + visible(text)""",
        """return visible(text)""",
        f"{LITERAL}::test_files_of_numbers_hold_no_formula_and_all_numbers",
    ),
    Mutation(
        "tables wider than their page",
        "shiq_bench/reporting/markup.py",
        r"""\ifdim\wd0>\linewidth""",
        r"""\ifdim\wd0<0pt""",
        f"{TABLES}::test_latex_compiles_as_it_stands_and_fits_its_pages[setting-wide]",
    ),
    Mutation(
        "a panel without the name of its only split",
        "shiq_bench/reporting/layout.py",
        "if len(places) == 1 else mode_title(block, mode)",
        "if not places else mode_title(block, mode)",
        f"{TABLES}::test_a_panel_of_one_split_names_it",
    ),
    Mutation(
        "underscores reach LaTeX",
        "shiq_bench/reporting/markup.py",
        r""""_": r"\_",""",
        r""""_": "_",""",
        f"{TABLES}::test_every_special_character_of_latex_is_escaped",
    ),
    Mutation(
        "labels are HTML",
        "shiq_bench/reporting/markup.py",
        "return markup.escape(",
        "return str(",
        f"{TABLES}::test_html_holds_no_markup_of_a_label",
    ),
    Mutation(
        "of two contents of one run the first is taken",
        "shiq_bench/reporting/runs.py",
        "if same is not record and same.to_json() != record.to_json():",
        "if same.run_id != record.run_id:",
        "tests/reporting/test_runs.py::test_one_run_with_two_contents_is_refused",
    ),
    Mutation(
        "unshared seeds are paired in order",
        "shiq_bench/reporting/compare.py",
        "return [(a[seed], b[seed]) for seed in shared]",
        "return list(zip(a.values(), b.values()))",
        f"{COMPARE}::test_seeds_are_paired_and_prompts_are_shared",
    ),
    Mutation(
        "a method's mean over prompts that the other has not answered",
        "shiq_bench/reporting/compare.py",
        """summarise([e for e in a.examples if e["prompt_id"] in shared], [metric])""",
        """summarise(a.examples, [metric])""",
        f"{COMPARE}::test_examples_that_differ_most",
    ),
    Mutation(
        "control characters of a model reach the terminal",
        "shiq_bench/reporting/literal.py",
        """c if c.isprintable() or c == "\\n" else c.encode("unicode_escape").decode("ascii") for c in text""",
        """c for c in text""",
        f"{COMPARE}::test_model_text_is_text[200]",
    ),
    Mutation(
        "scores count from the optimum down",
        "shiq_bench/reporting/crosswise.py",
        "out[method][panel] = [(worst - x) / (worst - best) for x in xs]",
        "out[method][panel] = [(best - x) / (best - worst) for x in xs]",
        "tests/reporting/test_crosswise.py::test_scores_lie_between_the_reference_and_the_optimum",
    ),
]
