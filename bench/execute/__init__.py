"""Do many runs in worker processes, with a forecast of the time and a line of progress."""
