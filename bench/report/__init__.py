"""From a results folder to what people read: the terminal's leaderboard, figures, and one self-contained page.

It reads ``results/<suite>`` and nothing else: a report can be made again anywhere, without torch and without a run.
"""
