"""The proof of a program at its own counts, against the dense graph and nothing that rewrote it.

choices      what each site of a run selected: rows, scores, partners, read off the run itself
invariants   what must be true of every selection, whatever the scores
poison       dead rows hold NaN, so nothing can read them unnoticed
fates        dropped, fused, merged, put back: a few lines of plain PyTorch each, tokens by their number
reference    the dense graph, interpreted one image at a time with those choices
own_counts   all of it together: one number, or the reason why there is none
"""
