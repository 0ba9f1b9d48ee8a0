"""The suite: every training method of the paper's Table 2 on nine drawn domains, from one start, with one budget."""
