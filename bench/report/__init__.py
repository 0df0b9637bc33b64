"""Turn a results folder into what people read: the leaderboard in the terminal, figures, and one self-contained page.

The modules read ``results/<suite>`` and nothing else. A report can therefore be made again on any machine, without
running anything.
"""
