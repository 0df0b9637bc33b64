"""Do many runs: in worker processes, with a forecast and a progress bar."""
