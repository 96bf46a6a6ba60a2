def explain(e, o): return None
