"""The proof of a program at its own token counts, against the dense graph and with no code of the passes.

choices      what each site of a run selected: rows, scores, partners, taken from the run itself
invariants   what must be true of every selection, whatever the scores
poison       rows that have left hold NaN, so that whatever reads them is seen
fates        dropped, fused, merged, put back: a few lines of plain PyTorch each, tokens by their number
reference    the dense graph, interpreted one image at a time with those choices
own_counts   all of it together: the largest difference, or why nothing could be compared
"""
