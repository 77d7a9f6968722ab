"""Videos judged: the prompts of public boards, which videos are there, their scores, totals and comparisons."""
