"""Bugs planted in ``training``."""

from __future__ import annotations

from tests.mutations.base import HEADS, IMPORTANCE, LORA, PADDED, TRAINING, Mutation

BUGS = [
    Mutation(
        "policy forgets the size of its vocabulary",
        "shiq_bench/training/policy.py",
        "token_stats(states[0], weight, targets, self.vocab, scale",
        "token_stats(states[0], weight, targets, scale",
        PADDED,
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
        "shiq_bench/training/reference.py",
        "copy.deepcopy(policy, shared).requires_grad_(False).eval()",
        "copy.deepcopy(policy, shared).requires_grad_(False)",
        f"{HEADS}::test_stats_come_from_whom_they_should",
    ),
    Mutation(
        "target network never updated",
        "shiq_bench/training/reference.py",
        "old.lerp_(new, self.tau)",
        "pass",
        f"{HEADS}::test_the_target_follows_by_polyak_averages_and_the_reference_by_jumps",
    ),
    Mutation(
        "target network keeps tau of itself",
        "shiq_bench/training/reference.py",
        "old.lerp_(new, self.tau)",
        "old.lerp_(new, 1 - self.tau)",
        f"{HEADS}::test_the_target_follows_by_polyak_averages_and_the_reference_by_jumps",
    ),
    Mutation(
        "reference never refreshed",
        "shiq_bench/training/reference.py",
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
    Mutation(
        "reference with adapters on",
        "shiq_bench/training/reference.py",
        "        with self.policy.model.disable_adapter():\n            return self.policy(**inputs)",
        "        return self.policy(**inputs)",
        f"{LORA}::test_adapters_begin_as_nothing_and_switch_off_to_the_bit[plain]",
    ),
    Mutation(
        "importance weights upside down",
        "shiq_bench/training/importance.py",
        "d = (logp.detach() - batch.sampler_logp) * batch.mask",
        "d = (batch.sampler_logp - logp.detach()) * batch.mask",
        f"{IMPORTANCE}::test_weighed_samples_of_another_policy_give_the_gradient_on_policy[reinforce-token-1]",
    ),
    Mutation(
        "importance weights truncated from below",
        "shiq_bench/training/importance.py",
        "ratio.clamp(max=cap)",
        "ratio.clamp(min=cap)",
        f"{IMPORTANCE}::test_weights_multiply_the_terms[reinforce-terms0]",
    ),
    Mutation(
        "tokens truncated before the product over a sequence",
        "shiq_bench/training/importance.py",
        "d = d.sum(-1, keepdim=True)",
        "d = d.exp().clamp(max=cap).log().sum(-1, keepdim=True)",
        f"{IMPORTANCE}::test_a_sequence_is_cut_after_the_product",
    ),
    Mutation(
        "a loss with a ratio to the sampler weighed twice",
        "shiq_bench/training/importance.py",
        "replace(batch, sampler_logp=old)",
        "batch",
        f"{IMPORTANCE}::test_weights_multiply_the_terms[grpo-terms2]",
    ),
    Mutation(
        "importance weights counted and not used",
        "shiq_bench/training/trainer.py",
        "stats, batch, numbers = weighed(stats, batch, *self.importance)",
        "_, _, numbers = weighed(stats, batch, *self.importance)",
        f"{IMPORTANCE}::test_the_engine_weighs_as_a_loss_would_by_hand[0-tree]",
    ),
]
