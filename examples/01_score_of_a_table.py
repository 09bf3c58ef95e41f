"""Fit a table, draw new rows, and ask for the score: the gradient of the log-density of the data at a noise level."""

from sklearn.datasets import load_wine

from gradlogp import ScoreDensity

X = load_wine(as_frame=True).data

est = ScoreDensity(n_steps=200, random_state=0, verbose=False).fit(X)
print("noise levels:", f"{est.levels_.sigma_min:.3g} to {est.levels_.sigma_max:.3g} standard deviations of each column")
print(est.self_check_)
print(est.sample(3).round(2))
print(est.grad_log_prob(X.head(3), sigma=0.5).round(2))
