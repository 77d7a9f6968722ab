def plan(**k):
    raise ValueError("x")
