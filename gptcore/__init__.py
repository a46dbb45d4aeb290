"""gptcore: every stage of a miniature ChatGPT, one module a concept.

In the order of the course: atlas, questions; attention; decoder; bpe, tokenizer; corpus, loss, training; optimizers,
machine; generation, evaluation, gold, exam, as_typed; chat_template, finetuning; ballots, reward; rollouts,
policy_training, advantages, ppo; chat; dpo, groups, best_of_n, sums, interchange, published, parallel, engines; what is
for data of the reader's own is named in README.md. `recipe` and `chain` put them together,
`checkpoint`, `runs` and `interruption` keep what came of it. Imports go one way only; each module says which chapter
builds it, or that none does.
"""
