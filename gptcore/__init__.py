"""gptcore: every stage of a miniature ChatGPT, one module a concept.

Read the modules in the order of the course: attention, decoder, tokenizer, corpus, training, evaluation,
generation, finetuning, reward, ppo, alignment, chat, checkpoint; `chain` runs them all. Six are about
computers and settings, not about GPT: `machine` (device, precision, threads), `parallel` (several processes), `files`,
`runs` (the folder of a run, and how to go on with it), `checks` (of settings) and `costs` (what things take here).
"""
