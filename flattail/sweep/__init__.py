"""Hyper-parameters chosen on images kept out of training: points of a space are trained, compared, and one is chosen.

space.py      what may vary, and how it is written
settings.py   a sweep as a value: recipe, space, seeds, share kept apart, by which score
apart.py      which images are kept apart, and whether every point can be trained
accuracy.py   an accuracy on few images, with its standard error
trial.py      one recipe with one seed, judged on its validation part
ledger.py     which trials there are, who does them, what came of them (Optuna)
workers.py    processes that do them
chosen.py     which one is best, what cannot be told from it, and the recipe to keep
figure.py     the scores against what was varied
"""
